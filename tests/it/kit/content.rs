use millpond::oci::{Algorithm, Digest, Manifest};

use crate::support::MIB;
use crate::support::registry::{Blob, Content, Image, Index, OCI_INDEX, Tree, gzip};

#[test]
fn a_seeded_content_is_the_same_wherever_it_is_read() {
    let content = Content::seeded(7, 3 * MIB + 17);
    let whole = content.to_bytes();
    for (offset, len) in [(0, 1), (1, 4095), (4090, 12), (4096, 4096), (MIB - 3, 9), (3 * MIB, 17)] {
        let mut part = vec![0; usize::try_from(len).unwrap()];
        content.read_at(offset, &mut part);
        let start = usize::try_from(offset).unwrap();
        assert_eq!(part, whole[start..start + part.len()], "{len} bytes at {offset}");
    }
    assert_eq!(content.digest(Algorithm::Sha256), Digest::sha256_of(&whole));
    assert_ne!(content.digest(Algorithm::Sha256), Content::seeded(8, 3 * MIB + 17).digest(Algorithm::Sha256));
    let repeat = whole.len() / 3 / 4096 * 4096;
    assert_ne!(whole[0..4096], whole[repeat..repeat + 4096], "pages differ also where the block repeats");
}

#[test]
fn the_digests_never_change_between_runs() {
    let digest = Blob::seeded(1, 1000).digest.to_string();
    assert_eq!(digest, "sha256:3af23c2228eadce32dd5fe19a8b7ec2c41e8f74ac018dfed01c8998ebfd165c6");
    assert_eq!(Blob::empty().digest.to_string(), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

#[test]
fn parts_are_read_across_their_borders() {
    let joined = Content::joined([Content::bytes("abc"), Content::bytes(""), Content::bytes("defgh").slice(1, 3), Content::bytes("i")]);
    assert_eq!(joined.to_bytes(), "abcefgi");
    assert_eq!(joined.slice(2, 4).to_bytes(), "cefg");
    let mut two = [0; 2];
    joined.read_at(5, &mut two);
    assert_eq!(&two, b"gi");
}

#[test]
fn a_large_content_is_cheap_to_look_into() {
    let huge = Content::seeded(1, 12_000 * MIB);
    let mut last = [0; 8];
    huge.read_at(huge.len() - 8, &mut last);
    assert_ne!(last, [0; 8]);
}

#[test]
fn an_image_is_what_a_mirror_reads_in_it() {
    let built = Tree::from(Image::layers([10, 20])).build();
    let read = Manifest::parse(&built.manifest, Some(&built.media_type)).unwrap();
    let named: Vec<Digest> = read.blobs.iter().map(|blob| blob.digest).collect();
    assert_eq!(named, built.blobs().map(|blob| blob.digest).collect::<Vec<_>>());
    assert_eq!(built.layers[1].len(), 20);
    assert_eq!(built.digest, Tree::from(Image::layers([10, 20])).build().digest);
    assert_ne!(built.digest, Tree::from(Image::layers([10, 20]).seed(2)).build().digest);
    assert_ne!(built.digest, Tree::from(Image::layers([10, 20]).docker()).build().digest);
}

#[test]
fn an_index_may_hold_an_index() {
    let inner = Index::platforms(&Image::layers([10]), &["linux/amd64", "linux/arm64"]);
    let outer = Tree::from(Index::of([Tree::from(inner), Tree::from(Image::artifact("application/spdx+json", 5))])).build();
    let read = Manifest::parse(&outer.manifest, Some(OCI_INDEX)).unwrap();
    assert_eq!(read.manifests.len(), 2);
    assert_eq!(outer.children[0].children.len(), 2);
    assert_ne!(outer.children[0].children[0].digest, outer.children[0].children[1].digest);
}

#[test]
fn odd_images_are_possible() {
    assert_eq!(Tree::from(Image::layers([1]).padded_to(4 << 20)).build().manifest.len(), 4 << 20);
    let sha512 = Tree::from(Image::layers([1]).sha512()).build();
    assert!(sha512.digest.to_string().starts_with("sha512:") && sha512.layers[0].digest.algorithm() == Algorithm::Sha512);
    assert!(sha512.digest.is_of(&sha512.manifest));
    let foreign = Tree::from(Image::layers([1]).foreign_layer("https://registry.invalid/base")).build();
    assert_eq!((foreign.layers.len(), Manifest::parse(&foreign.manifest, None).unwrap().blobs.len()), (1, 3));
    let subject = Tree::from(Image::artifact("application/spdx+json", 9).subject(&sha512)).build();
    assert!(std::str::from_utf8(&subject.manifest).unwrap().contains(&sha512.digest.to_string()));
}

#[test]
fn a_tar_layer_is_a_tar() {
    let tar = Content::tar("etc/hello", Content::bytes("hello")).to_bytes();
    assert_eq!((tar.len(), &tar[257..262], &tar[512..517]), (512 + 512 + 1024, &b"ustar"[..], &b"hello"[..]));
    let sum: u32 = tar[..148].iter().chain(&tar[156..512]).map(|&b| u32::from(b)).sum::<u32>() + 8 * 32;
    assert_eq!(&tar[148..154], format!("{sum:06o}").as_bytes());
}

#[test]
fn gzip_is_gzip() {
    // Of "a": the last eight bytes are the CRC-32 and the length.
    let zipped = gzip(b"a");
    assert_eq!(zipped[10..], [1, 1, 0, 0xfe, 0xff, b'a', 0x43, 0xbe, 0xb7, 0xe8, 1, 0, 0, 0]);
    assert_eq!(gzip(&vec![0; 70_000]).len(), 10 + 5 + 65_535 + 5 + 4_465 + 8);
}

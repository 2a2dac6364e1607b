//! A whole file in the address space of this process, for ever: what the limit hands to the kernel. The one `unsafe` here.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::mm::{MapFlags, ProtFlags, mmap};

/// Maps a file of the benchmark's own folder.
pub fn map(path: &Path) -> io::Result<&'static [u8]> {
    let file = File::open(path)?;
    let len = file.metadata()?.len() as usize;
    // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing; it is `len` readable bytes, and is never
    // unmapped. The file is a blob that was renamed into place whole: nobody writes to it or shortens it after that.
    unsafe {
        let start = mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, &file, 0)?;
        Ok(std::slice::from_raw_parts(start.cast::<u8>(), len))
    }
}

//! A file system of its own for a data folder, made in a file: one that can fail, or lose its power, without the machine.

use std::fs;
use std::path::{Path, PathBuf};

use super::lack::tool;

/// A mounted file system in a file. Dropped, it is gone; the file stays.
#[derive(Debug)]
pub struct Volume {
    image: PathBuf,
    dir: PathBuf,
}

impl Volume {
    /// Makes an empty file of so many MiB, as the arguments of `mkfs` say, and mounts it over `dir`.
    pub fn make(image: &Path, mib: u64, mkfs: &[&str], dir: &Path, options: &str) -> Result<Self, String> {
        let file = fs::File::create(image).map_err(|error| error.to_string())?;
        file.set_len(mib << 20).map_err(|error| error.to_string())?;
        tool(mkfs[0], &[&mkfs[1..], &[&*image.to_string_lossy()]].concat())?;
        Self::mount(image, dir, options)
    }

    /// Mounts a file that holds a file system.
    pub fn mount(image: &Path, dir: &Path, options: &str) -> Result<Self, String> {
        fs::create_dir_all(dir).map_err(|error| error.to_string())?;
        let options = if options.is_empty() { "loop".to_owned() } else { format!("loop,{options}") };
        tool("mount", &["-o", &options, &image.to_string_lossy(), &dir.to_string_lossy()])?;
        Ok(Self { image: image.to_owned(), dir: dir.to_owned() })
    }

    /// The file that it is in.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// The name of its loop device.
    pub fn device(&self) -> Result<String, String> {
        let source = tool("findmnt", &["-n", "-o", "SOURCE", &self.dir.to_string_lossy()])?;
        source.rsplit('/').next().map(str::to_owned).ok_or_else(|| "no device".to_owned())
    }

    /// Unmounts it, once nobody uses it.
    pub fn unmount(self) -> Result<PathBuf, String> {
        tool("umount", &[&self.dir.to_string_lossy()])?;
        let image = self.image.clone();
        std::mem::forget(self);
        Ok(image)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Lazily: a test that failed may have files open still.
        let _ = tool("umount", &["-l", &self.dir.to_string_lossy()]);
    }
}

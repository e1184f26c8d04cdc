//! Files and block devices as source and destination.

use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::zeroes;

/// Zeroes are left out of a file in pieces of this size, in bytes: what most file systems
/// allocate at least.
const GRANULE: usize = 4096;

/// A file to be read.
#[derive(Debug)]
pub(crate) struct SourceFile {
    file: File,
    size: u64,
    /// Up to here, there is no use in looking for a hole.
    data_end: u64,
}

impl SourceFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        // Looked at before it is opened: opening a pipe would wait for its other end.
        let metadata = fs::metadata(path).context("cannot open the source")?;
        check_kind(metadata.file_type())?;
        let mut file = File::open(path).context("cannot open the source")?;
        let size = size_of(&mut file)?;
        Ok(Self {
            file,
            size,
            data_end: 0,
        })
    }

    pub(crate) const fn size(&self) -> u64 {
        self.size
    }

    /// Fills the buffer from `offset` on.
    pub(crate) fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let result = self.file.read_exact_at(buffer, offset);
        result.map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => {
                io::Error::other("the file has become shorter since the copy began")
            }
            _ => error,
        })
    }

    /// How many bytes from `offset` on lie in a hole, and so are zeroes.
    #[cfg(target_os = "linux")]
    pub(crate) fn hole(&mut self, offset: u64) -> u64 {
        use rustix::fs::{SeekFrom, seek};
        use rustix::io::Errno;

        if offset < self.data_end {
            return 0;
        }
        match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) if offset < data => data.min(self.size) - offset,
            Ok(_) => {
                self.data_end = seek(&self.file, SeekFrom::Hole(offset)).unwrap_or(self.size);
                0
            }
            // No data up to the end; but if the end is not where it was, reading is to find out.
            Err(Errno::NXIO) if self.is_whole() => self.size - offset,
            Err(_) => {
                self.data_end = self.size;
                0
            }
        }
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) const fn hole(&mut self, _offset: u64) -> u64 {
        0
    }

    #[cfg(target_os = "linux")]
    fn is_whole(&self) -> bool {
        let metadata = self.file.metadata();
        metadata.is_ok_and(|metadata| metadata.is_file() && metadata.len() >= self.size)
    }
}

/// A file to be written.
#[derive(Debug)]
pub(crate) struct DestinationFile {
    file: File,
    path: Box<Path>,
    is_new: bool,
    /// Whether everything that was not written reads as zeroes.
    is_sparse: bool,
}

impl DestinationFile {
    /// Opens or creates the file. What is in it stays for now.
    pub(crate) fn open(path: &Path, source: Option<&SourceFile>) -> Result<Self> {
        let before = fs::metadata(path);
        if let Ok(metadata) = &before {
            check_kind(metadata.file_type())?;
            let source = source.map(|source| source.file.metadata()).transpose()?;
            if source.is_some_and(|source| is_same(&source, metadata)) {
                bail!("source and destination are the same file");
            }
        }
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            // Not before all that can be known is known to be right.
            .truncate(false)
            .open(path)
            .context("cannot open the destination")?;
        check_kind(file.metadata()?.file_type())?;
        Ok(Self {
            file,
            path: path.into(),
            is_new: before.is_err(),
            is_sparse: false,
        })
    }

    /// Throws away what was in the file, and makes it `size` bytes of zeroes. A block device is
    /// left as it is, and has to be large enough.
    pub(crate) fn make_room(&mut self, size: u64) -> Result<()> {
        if !self.file.metadata()?.is_file() {
            let room = size_of(&mut self.file)?;
            ensure!(
                size <= room,
                "the destination has {room} bytes and the source {size}: it needs to be larger"
            );
            return Ok(());
        }
        // First of all what may be refused.
        self.file
            .set_len(size)
            .with_context(|| format!("cannot make the destination {size} bytes long"))?;
        self.file
            .set_len(0)
            .and_then(|()| self.file.set_len(size))
            .context("cannot empty the destination")?;
        self.is_sparse = true;
        Ok(())
    }

    /// Whether what is not written reads as zeroes.
    pub(crate) const fn is_sparse(&self) -> bool {
        self.is_sparse
    }

    /// Makes a range, which was not written yet, equal to these bytes.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if !self.is_sparse {
            return self.file.write_all_at(bytes, offset);
        }
        for (at, data) in zeroes::data(bytes, GRANULE) {
            self.file.write_all_at(data, offset + at as u64)?;
        }
        Ok(())
    }

    /// Puts everything on permanent storage.
    pub(crate) fn flush(&self) -> io::Result<()> {
        self.file.sync_all()?;
        if self.is_new {
            // The name is no part of the file.
            let path = fs::canonicalize(&self.path)?;
            if let Some(Ok(directory)) = path.parent().map(File::open) {
                directory.sync_all()?;
            }
        }
        Ok(())
    }
}

fn check_kind(kind: FileType) -> Result<()> {
    ensure!(
        kind.is_file() || kind.is_block_device(),
        "this is neither a file nor a block device"
    );
    Ok(())
}

/// The size of a file or a block device; of the latter, the metadata do not tell.
fn size_of(file: &mut File) -> Result<u64> {
    file.seek(SeekFrom::End(0)).context("cannot find its size")
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    if one.file_type().is_block_device() && other.file_type().is_block_device() {
        return one.rdev() == other.rdev();
    }
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

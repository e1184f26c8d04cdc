//! Files and block devices as source and destination.

use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// A file to be read.
#[derive(Debug)]
pub(crate) struct SourceFile {
    file: File,
    size: u64,
}

impl SourceFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        // Looked at before it is opened: opening a pipe would wait for its other end.
        let metadata = fs::metadata(path).context("cannot open the source")?;
        check_kind(metadata.file_type())?;
        let mut file = File::open(path).context("cannot open the source")?;
        let size = size_of(&mut file)?;
        Ok(Self { file, size })
    }

    pub(crate) const fn size(&self) -> u64 {
        self.size
    }

    /// Fills the buffer from `offset` on.
    pub(crate) fn read(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}

/// A file to be written.
#[derive(Debug)]
pub(crate) struct DestinationFile {
    file: File,
    /// Whether everything that was not written reads as zeroes.
    is_zero: bool,
}

impl DestinationFile {
    /// Creates the file, or throws away what was in it; a block device is left as it is, and has
    /// to be large enough.
    pub(crate) fn create(path: &Path, size: u64, source: Option<&SourceFile>) -> Result<Self> {
        if let Ok(metadata) = fs::metadata(path) {
            check_kind(metadata.file_type())?;
            let source = source.map(|source| source.file.metadata()).transpose()?;
            if source.is_some_and(|source| is_same(&source, &metadata)) {
                bail!("source and destination are the same file");
            }
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            // Not before its kind is known to be right.
            .truncate(false)
            .open(path)
            .context("cannot open the destination")?;
        let kind = file.metadata()?.file_type();
        check_kind(kind)?;
        let is_zero = kind.is_file();
        if is_zero {
            file.set_len(0).context("cannot empty the destination")?;
            file.set_len(size)
                .with_context(|| format!("cannot make the destination {size} bytes long"))?;
        } else {
            let room = size_of(&mut file)?;
            ensure!(
                size <= room,
                "the destination has {room} bytes and the source {size}: it needs to be larger"
            );
        }
        Ok(Self { file, is_zero })
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    /// Makes a range, which was not written yet, equal to these zeroes.
    pub(crate) fn write_zeroes(&self, offset: u64, zeroes: &[u8]) -> std::io::Result<()> {
        if self.is_zero {
            return Ok(());
        }
        self.write(offset, zeroes)
    }

    /// Puts everything on permanent storage.
    pub(crate) fn flush(&self) -> std::io::Result<()> {
        self.file.sync_all()
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

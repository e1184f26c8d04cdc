//! Files and block devices as source and destination.
//!
//! Everything is asked with `&self`: several threads read and write one file.

use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};

use super::shared::connection::Extent;
use super::zeroes;

/// Zeroes are left out of a file in pieces of this size, in bytes: what most file systems
/// allocate at least.
const GRANULE: usize = 4096;

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
    pub(crate) fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        read(&self.file, offset, buffer)
    }

    /// Which parts of a range are holes, and so are zeroes, and which may be data. The last may
    /// reach beyond the range.
    #[cfg(target_os = "linux")]
    pub(crate) fn extents(&self, range: Range<u64>) -> Vec<Extent> {
        use rustix::fs::{SeekFrom, seek};
        use rustix::io::Errno;

        let mut extents = Vec::new();
        let mut push = |range: Range<u64>, zero| {
            if !range.is_empty() {
                extents.push(Extent { range, zero });
            }
        };
        let mut at = range.start;
        while at < range.end {
            let data = match seek(&self.file, SeekFrom::Data(at)) {
                Ok(data) => data.clamp(at, range.end),
                // No data up to the end; or the end is not where it was, as will be seen.
                Err(Errno::NXIO) => range.end,
                // There is no telling.
                Err(_) => {
                    push(at..range.end, false);
                    break;
                }
            };
            push(at..data, true);
            if data == range.end {
                break;
            }
            let hole = seek(&self.file, SeekFrom::Hole(data)).unwrap_or(range.end);
            // A file that is changed meanwhile must not keep us here.
            at = if hole > data { hole } else { range.end };
            push(data..at, false);
        }
        extents
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn extents(&self, range: Range<u64>) -> Vec<Extent> {
        vec![Extent { range, zero: false }]
    }

    /// Whether everything up to `end` is still there. Of a hole that is gone, nothing else tells.
    pub(crate) fn check(&self, end: u64) -> io::Result<()> {
        let metadata = self.file.metadata()?;
        if metadata.is_file() && metadata.len() < end {
            return Err(has_become_shorter());
        }
        Ok(())
    }
}

/// A file to be written.
#[derive(Debug)]
pub(crate) struct DestinationFile {
    file: File,
    path: Box<Path>,
    is_new: bool,
    is_regular: bool,
    /// Whether zeroes take room like all else.
    allocate: bool,
    /// Whether everything that was not written reads as zeroes.
    is_zero: bool,
    /// Whether the system can zero a range by itself, as far as is known.
    can_zero: AtomicBool,
}

impl DestinationFile {
    /// Opens or creates the file. What is in it stays for now.
    pub(crate) fn open(path: &Path, source: Option<&SourceFile>, how: How) -> Result<Self> {
        let before = Self::look(path, source)?;
        let file = OpenOptions::new()
            .read(how.verify)
            .write(true)
            .create(true)
            // Not before all that can be known is known to be right.
            .truncate(false)
            .open(path)
            .context("cannot open the destination")?;
        let kind = file.metadata()?.file_type();
        check_kind(kind)?;
        Ok(Self {
            file,
            path: path.into(),
            is_new: before.is_none(),
            is_regular: kind.is_file(),
            allocate: how.allocate,
            is_zero: how.is_zero,
            can_zero: AtomicBool::new(cfg!(target_os = "linux")),
        })
    }

    /// Looks at what is there, and touches nothing.
    pub(crate) fn look(path: &Path, source: Option<&SourceFile>) -> Result<Option<Metadata>> {
        let Ok(metadata) = fs::metadata(path) else {
            return Ok(None);
        };
        check_kind(metadata.file_type())?;
        let source = source.map(|source| source.file.metadata()).transpose()?;
        if source.is_some_and(|source| is_same(&source, &metadata)) {
            bail!("source and destination are the same file");
        }
        Ok(Some(metadata))
    }

    /// Throws away what was in the file, and makes it `size` bytes of zeroes. A block device is
    /// left as it is, and has to be large enough.
    pub(crate) fn make_room(&mut self, size: u64) -> Result<()> {
        if !self.is_regular {
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
        self.is_zero = !self.allocate || self.reserve(size)?;
        Ok(())
    }

    /// Has storage put by for the whole file; whether the file system can.
    #[cfg(target_os = "linux")]
    fn reserve(&self, size: u64) -> Result<bool> {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;

        if size == 0 {
            return Ok(true);
        }
        match fallocate(&self.file, FallocateFlags::empty(), 0, size) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("cannot reserve {size} bytes")),
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn reserve(&self, _size: u64) -> Result<bool> {
        Ok(false)
    }

    /// Whether what is not written reads as zeroes.
    pub(crate) const fn is_zero(&self) -> bool {
        self.is_zero
    }

    /// Whether [`zero`](Self::zero) can be tried.
    pub(crate) fn can_zero(&self) -> bool {
        self.can_zero.load(Ordering::Relaxed)
    }

    /// Has the system make a range read as zeroes; false if it cannot.
    #[cfg(target_os = "linux")]
    pub(crate) fn zero(&self, offset: u64, length: u64) -> io::Result<bool> {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;

        let how = if self.allocate {
            FallocateFlags::ZERO_RANGE
        } else {
            FallocateFlags::PUNCH_HOLE
        };
        match fallocate(&self.file, how | FallocateFlags::KEEP_SIZE, offset, length) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV | Errno::INVAL) => {
                self.can_zero.store(false, Ordering::Relaxed);
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn zero(&self, _offset: u64, _length: u64) -> io::Result<bool> {
        Ok(false)
    }

    /// Makes a range, which was not written yet, equal to these bytes.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if !self.is_zero {
            return self.file.write_all_at(bytes, offset);
        }
        for (at, data) in zeroes::data(bytes, GRANULE) {
            self.file.write_all_at(data, offset + at as u64)?;
        }
        Ok(())
    }

    /// Fills the buffer from `offset` on.
    pub(crate) fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        read(&self.file, offset, buffer)
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

    /// Has the system forget what it knows of the contents, so that they are read from where they
    /// are kept; as far as it listens.
    pub(crate) fn forget_cached(&self) {
        #[cfg(target_os = "linux")]
        let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
    }
}

/// What is to be done with a destination file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    /// It is to be read again.
    pub(crate) verify: bool,
    /// Zeroes are to take room like all else.
    pub(crate) allocate: bool,
    /// The user says that all of it is zeroes.
    pub(crate) is_zero: bool,
}

fn read(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    let result = file.read_exact_at(buffer, offset);
    result.map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => has_become_shorter(),
        _ => error,
    })
}

fn has_become_shorter() -> io::Error {
    io::Error::other("the file has become shorter since the copy began")
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

//! A regular file or a block device, through the kernel's page cache.
//!
//! # When a flush fails
//!
//! After a failed `fdatasync` Linux marks the pages it could not write as clean and may drop them:
//! the next `fdatasync` succeeds without the data being anywhere. Trying again proves nothing. So a
//! failure is remembered here, whether it was a flush that met it or a command with FUA: from then
//! on every flush fails, and every command with FUA.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{
    Backend, Capabilities, Extent, Handle, Pace, Zeroing, buffer_within, end_within,
    read_only_error,
};

/// Written again and again where the filesystem cannot make zeroes itself.
static ZEROES: [u8; 256 * 1024] = [0; 256 * 1024];

/// A file or block device, opened once and shared by all connections: what they see of each other
/// goes through the page cache, which is one for all.
#[derive(Clone)]
pub(crate) struct FileBackend {
    shared: Arc<Shared>,
}

struct Shared {
    file: File,
    path: PathBuf,
    size: u64,
    read_only: bool,
    is_device: bool,
    preferred_block: u32,
    kernel: kernel::Abilities,
    /// Something that should have become permanent may be lost.
    failed: AtomicBool,
    #[cfg(test)]
    next_sync_fails: AtomicBool,
}

impl FileBackend {
    /// Opens `path`, for reading alone if `read_only`.
    ///
    /// # Errors
    ///
    /// With the path, the reason and what may be done about it.
    pub(crate) fn open(path: impl AsRef<Path>, read_only: bool) -> io::Result<Self> {
        let path = path.as_ref();
        let fail = |source: io::Error| {
            let advice = advice(source.kind(), read_only);
            io::Error::new(
                source.kind(),
                format!("cannot open {}: {source}{advice}", path.display()),
            )
        };
        // Asked before opening, which would wait for the other end of a pipe.
        let metadata = fs::metadata(path).map_err(fail)?;
        let is_device = is_device(&metadata).map_err(fail)?;
        let preferred_block = preferred_block(metadata.blksize());
        let mut file = File::options()
            .read(true)
            .write(!read_only)
            .open(path)
            .map_err(fail)?;
        // A block device has no length in its metadata.
        let size = file.seek(SeekFrom::End(0)).map_err(fail)?;
        let kernel = kernel::Abilities::of(&file, is_device);
        Ok(Self {
            shared: Arc::new(Shared {
                file,
                path: path.to_owned(),
                size,
                read_only,
                is_device,
                preferred_block,
                kernel,
                failed: AtomicBool::new(false),
                #[cfg(test)]
                next_sync_fails: AtomicBool::new(false),
            }),
        })
    }
}

#[cfg(test)]
impl FileBackend {
    /// This file on a filesystem that can do nothing but read and write.
    pub(super) fn plain(self) -> Self {
        self.shared.kernel.refuse_all();
        self
    }

    /// The next time that something is to become permanent, it does not.
    pub(super) fn fail_next_sync(&self) {
        self.shared.next_sync_fails.store(true, Ordering::Relaxed);
    }
}

/// Whether this is a block device and not a regular file; others cannot be served.
fn is_device(metadata: &fs::Metadata) -> io::Result<bool> {
    let kind = metadata.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(kind.is_block_device());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        "only regular files and block devices can be served",
    ))
}

/// What the filesystem prefers, if that is something that clients can be told, and does not make
/// them read much more than they need.
fn preferred_block(blksize: u64) -> u32 {
    match u32::try_from(blksize) {
        Ok(size) if size.is_power_of_two() && (4096..=1 << 20).contains(&size) => size,
        _ => 4096,
    }
}

fn advice(kind: io::ErrorKind, read_only: bool) -> &'static str {
    match kind {
        io::ErrorKind::NotFound => "; create it with the size to be served, as by `truncate -s 1G`",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem if !read_only => {
            "; serve it read-only, or get the right to write to it"
        }
        io::ErrorKind::PermissionDenied => "; get the right to read it",
        _ => "",
    }
}

impl Backend for FileBackend {
    fn size(&self) -> u64 {
        self.shared.size
    }

    fn capabilities(&self) -> Capabilities {
        let linux = cfg!(target_os = "linux");
        Capabilities {
            read_only: self.shared.read_only,
            flush: true,
            fua: true,
            multi_conn: true,
            trim: linux,
            write_zeroes: true,
            fast_zero: linux,
            cache: linux,
            min_block: 1,
            preferred_block: self.shared.preferred_block,
        }
    }

    fn open(&self) -> io::Result<Arc<dyn Handle>> {
        Ok(self.shared.clone())
    }
}

impl Handle for Shared {
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        buffer_within(self.size, offset, buf)?;
        self.file
            .read_exact_at(buf, offset)
            .map_err(|error| self.explain("read", offset, error))
    }

    fn try_read(&self, offset: u64, buf: &mut [u8]) -> io::Result<bool> {
        buffer_within(self.size, offset, buf)?;
        Ok(buf.is_empty() || self.kernel.read_cached(&self.file, offset, buf))
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> io::Result<()> {
        self.check_writable()?;
        buffer_within(self.size, offset, data)?;
        let explain = |error| self.explain("write", offset, error);
        if fua && self.write_stable(offset, data)? {
            return Ok(());
        }
        self.file.write_all_at(data, offset).map_err(explain)?;
        self.sync_if(fua)
    }

    fn write_zeroes(&self, offset: u64, length: u64, how: Zeroing) -> io::Result<()> {
        self.check_writable()?;
        let end = end_within(self.size, offset, length)?;
        if length == 0 {
            return Ok(());
        }
        if !self.zero_by_kernel(offset, length, how)? {
            if how.fast_only {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    format!("{}: zeroes would have to be written", self.path.display()),
                ));
            }
            self.zero_by_writing(offset, end)?;
        }
        self.sync_if(how.fua)
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        self.check_writable()?;
        end_within(self.size, offset, length)?;
        if length == 0 {
            return Ok(());
        }
        // A trim is advice: where it cannot be followed, nothing needs to happen.
        self.kernel
            .punch_hole(&self.file, offset, length)
            .map_err(|error| self.explain("trim", offset, error))?;
        self.sync_if(fua)
    }

    fn cache(&self, offset: u64, length: u64) -> io::Result<()> {
        end_within(self.size, offset, length)?;
        kernel::read_ahead(&self.file, offset, length)
            .map_err(|error| self.explain("read ahead", offset, error))
    }

    fn flush(&self) -> io::Result<()> {
        self.sync_if(!self.read_only)
    }

    fn pace(&self) -> Pace {
        Pace::Buffered
    }

    fn extents(&self, offset: u64, length: u64, limit: usize) -> io::Result<Vec<Extent>> {
        let end = end_within(self.size, offset, length)?;
        kernel::extents(&self.file, offset..end, self.size, limit)
            .map_err(|error| self.explain("find extents", offset, error))
    }

    fn is_hole(&self, offset: u64, length: u64) -> io::Result<bool> {
        let end = end_within(self.size, offset, length)?;
        kernel::is_hole(&self.file, offset, end)
            .map_err(|error| self.explain("find extents", offset, error))
    }
}

impl Shared {
    fn check_writable(&self) -> io::Result<()> {
        if self.read_only {
            return Err(read_only_error());
        }
        Ok(())
    }

    /// `Ok(false)`: the kernel cannot, and nothing was written.
    fn write_stable(&self, offset: u64, data: &[u8]) -> io::Result<bool> {
        self.check_stable()?;
        let written = self.kernel.write_stable(&self.file, offset, data);
        written.map_err(|error| {
            // Where there was no room, nothing else was touched.
            if !matches!(
                error.kind(),
                io::ErrorKind::StorageFull
                    | io::ErrorKind::QuotaExceeded
                    | io::ErrorKind::FileTooLarge
            ) {
                self.failed.store(true, Ordering::Relaxed);
            }
            self.explain("write", offset, error)
        })
    }

    fn sync_if(&self, needed: bool) -> io::Result<()> {
        if !needed {
            return Ok(());
        }
        self.check_stable()?;
        self.sync().map_err(|error| {
            self.failed.store(true, Ordering::Relaxed);
            io::Error::new(
                error.kind(),
                format!(
                    "{}: flush: {error}; earlier writes may be lost, check the device",
                    self.path.display()
                ),
            )
        })
    }

    fn sync(&self) -> io::Result<()> {
        #[cfg(test)]
        if self.next_sync_fails.swap(false, Ordering::Relaxed) {
            return Err(io::Error::other("told to fail"));
        }
        self.file.sync_data()
    }

    /// Whether a success would still mean anything.
    fn check_stable(&self) -> io::Result<()> {
        if self.failed.load(Ordering::Relaxed) {
            return Err(io::Error::other(format!(
                "{}: an earlier flush failed; what was written before may be lost, check the \
                 device and start anew",
                self.path.display()
            )));
        }
        Ok(())
    }

    /// `Ok(false)`: the kernel cannot, or not faster than by writing.
    fn zero_by_kernel(&self, offset: u64, length: u64, how: Zeroing) -> io::Result<bool> {
        let explain = |error| self.explain("zero", offset, error);
        let punch = || self.kernel.punch_hole(&self.file, offset, length);
        if how.may_trim && punch().map_err(explain)? {
            return Ok(true);
        }
        // On a device this falls back to writing within the kernel: good, but not fast.
        if how.fast_only && self.is_device {
            return Ok(false);
        }
        self.kernel
            .zero_range(&self.file, offset, length)
            .map_err(explain)
    }

    fn zero_by_writing(&self, mut offset: u64, end: u64) -> io::Result<()> {
        while offset < end {
            let take = (end - offset).min(ZEROES.len() as u64);
            self.file
                .write_all_at(&ZEROES[..take as usize], offset)
                .map_err(|error| self.explain("write zeroes", offset, error))?;
            offset += take;
        }
        Ok(())
    }

    fn explain(&self, what: &str, offset: u64, error: io::Error) -> io::Error {
        let reason = match error.kind() {
            io::ErrorKind::UnexpectedEof => "it has become shorter since it was opened".to_owned(),
            io::ErrorKind::StorageFull => format!("{error}; make room on its filesystem"),
            _ => error.to_string(),
        };
        io::Error::new(
            error.kind(),
            format!("{}: {what} at {offset}: {reason}", self.path.display()),
        )
    }
}

/// What Linux offers beyond reading and writing.
#[cfg(target_os = "linux")]
mod kernel {
    use std::fs::File;
    use std::io::{self, IoSlice, IoSliceMut};
    use std::num::NonZeroU64;
    use std::ops::Range;
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::fs::{Advice, FallocateFlags, SeekFrom, fadvise, fallocate, fstatfs, seek};
    use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev2};

    use super::super::{Content, Extent, SPARSE_READ};

    /// <linux/magic.h>
    const TMPFS_MAGIC: u32 = 0x0102_1994;

    /// What this file's filesystem is known to do, and what it has refused so far, so that it is
    /// not asked each time.
    #[derive(Debug)]
    pub(super) struct Abilities {
        /// The file is in memory, and not in a cache: tmpfs does not tell whether a read would
        /// wait, but as good as none does.
        in_memory: AtomicBool,
        no_punch_hole: AtomicBool,
        no_zero_range: AtomicBool,
        no_read_cached: AtomicBool,
        no_write_stable: AtomicBool,
    }

    impl Abilities {
        pub(super) fn of(file: &File, is_device: bool) -> Self {
            let is_tmpfs = || {
                fstatfs(file).is_ok_and(|system| u32::try_from(system.f_type) == Ok(TMPFS_MAGIC))
            };
            Self {
                // Of a device one is told where its node is, and that is a tmpfs as well.
                in_memory: AtomicBool::new(!is_device && is_tmpfs()),
                no_punch_hole: AtomicBool::new(false),
                no_zero_range: AtomicBool::new(false),
                no_read_cached: AtomicBool::new(false),
                no_write_stable: AtomicBool::new(false),
            }
        }

        /// Makes a hole, which reads as zeroes. `Ok(false)`: not supported, nothing happened.
        pub(super) fn punch_hole(&self, file: &File, offset: u64, length: u64) -> io::Result<bool> {
            let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            try_fallocate(&self.no_punch_hole, file, mode, offset, length)
        }

        /// Zeroes without a hole. `Ok(false)`: not supported, nothing happened.
        pub(super) fn zero_range(&self, file: &File, offset: u64, length: u64) -> io::Result<bool> {
            let mode = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
            try_fallocate(&self.no_zero_range, file, mode, offset, length)
        }

        /// Writes to permanent storage, and makes nothing else stable: another connection's dirty
        /// data is not this one's business. `Ok(false)`: not supported, write and sync instead.
        pub(super) fn write_stable(
            &self,
            file: &File,
            mut offset: u64,
            mut data: &[u8],
        ) -> io::Result<bool> {
            if self.no_write_stable.load(Ordering::Relaxed) {
                return Ok(false);
            }
            while !data.is_empty() {
                match pwritev2(file, &[IoSlice::new(data)], offset, ReadWriteFlags::DSYNC) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(done) => {
                        offset += done as u64;
                        data = data.get(done..).unwrap_or_default();
                    }
                    Err(Errno::INTR) => {}
                    Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                        self.no_write_stable.store(true, Ordering::Relaxed);
                        return Ok(false);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(true)
        }

        /// Fills `buf` if the page cache has all of it. Errors are left to the read that follows.
        pub(super) fn read_cached(&self, file: &File, offset: u64, buf: &mut [u8]) -> bool {
            if self.in_memory.load(Ordering::Relaxed) {
                // A large hole is in no cache either: whoever reads it is told of it as what it is.
                let end = offset.saturating_add(buf.len() as u64);
                let is_worth_reading = buf.len() < SPARSE_READ
                    || is_hole(file, offset, end).is_ok_and(|is_hole| !is_hole);
                return is_worth_reading && file.read_exact_at(buf, offset).is_ok();
            }
            if self.no_read_cached.load(Ordering::Relaxed) {
                return false;
            }
            let length = buf.len();
            let mut target = [IoSliceMut::new(buf)];
            match preadv2(file, &mut target, offset, ReadWriteFlags::NOWAIT) {
                Ok(done) => done == length,
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                    self.no_read_cached.store(true, Ordering::Relaxed);
                    false
                }
                Err(_) => false,
            }
        }
    }

    impl Abilities {
        /// As of a filesystem that can do nothing but read and write.
        #[cfg(test)]
        pub(super) fn refuse_all(&self) {
            for refused in [
                &self.no_punch_hole,
                &self.no_zero_range,
                &self.no_read_cached,
                &self.no_write_stable,
            ] {
                refused.store(true, Ordering::Relaxed);
            }
            self.in_memory.store(false, Ordering::Relaxed);
        }
    }

    fn try_fallocate(
        refused: &AtomicBool,
        file: &File,
        mode: FallocateFlags,
        offset: u64,
        length: u64,
    ) -> io::Result<bool> {
        if refused.load(Ordering::Relaxed) {
            return Ok(false);
        }
        loop {
            return match fallocate(file, mode, offset, length) {
                Ok(()) => Ok(true),
                Err(Errno::INTR) => continue,
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => {
                    refused.store(true, Ordering::Relaxed);
                    Ok(false)
                }
                // A device refuses ranges that are not aligned to its sectors, and only those.
                Err(Errno::INVAL) => Ok(false),
                Err(error) => Err(error.into()),
            };
        }
    }

    pub(super) fn read_ahead(file: &File, offset: u64, length: u64) -> io::Result<()> {
        // A length of 0 would mean "to the end".
        if let Some(length) = NonZeroU64::new(length) {
            fadvise(file, offset, Some(length), Advice::WillNeed)?;
        }
        Ok(())
    }

    /// Seeking moves the offset that all connections share, which nobody uses. What was found
    /// beyond the range, up to `size`, is told along, so that it need not be looked for again.
    pub(super) fn extents(
        file: &File,
        range: Range<u64>,
        size: u64,
        limit: usize,
    ) -> io::Result<Vec<Extent>> {
        let mut extents = Vec::new();
        let mut position = range.start;
        while position < range.end && extents.len() < limit {
            let data = match seek(file, SeekFrom::Data(position)) {
                Ok(data) => data.clamp(position, size),
                // No data from here to the end.
                Err(Errno::NXIO) => size,
                // Not known here: data is always a true answer.
                Err(Errno::INVAL | Errno::OPNOTSUPP) => position,
                Err(error) => return Err(error.into()),
            };
            let (stop, content) = if data > position {
                (data, Content::Hole)
            } else {
                (end_of_data(file, position, range.end, size)?, Content::Data)
            };
            extents.push(Extent {
                length: stop - position,
                content,
            });
            position = stop;
        }
        merge(&mut extents);
        Ok(extents)
    }

    /// Looks for data only: some filesystems (tmpfs) find the next hole by looking at every page
    /// before it.
    pub(super) fn is_hole(file: &File, offset: u64, end: u64) -> io::Result<bool> {
        match seek(file, SeekFrom::Data(offset)) {
            Ok(data) => Ok(data >= end),
            Err(Errno::NXIO) => Ok(true),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Where data that begins at `position` ends; `end` if that cannot be told.
    fn end_of_data(file: &File, position: u64, end: u64, size: u64) -> io::Result<u64> {
        match seek(file, SeekFrom::Hole(position)) {
            Ok(hole) if hole > position => Ok(hole.min(size)),
            // Somebody made a hole between the two calls, or it is not known.
            Ok(_) | Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => Ok(end),
            Err(error) => Err(error.into()),
        }
    }

    /// Writers at work between two calls may make neighbours equal.
    fn merge(extents: &mut Vec<Extent>) {
        extents.dedup_by(|next, kept| {
            let same = next.content == kept.content;
            if same {
                kept.length += next.length;
            }
            same
        });
    }
}

/// Elsewhere everything is done by reading and writing.
#[cfg(not(target_os = "linux"))]
mod kernel {
    use std::fs::File;
    use std::io;
    use std::ops::Range;

    use super::super::{Content, Extent, SPARSE_READ};

    #[derive(Debug)]
    pub(super) struct Abilities;

    impl Abilities {
        pub(super) const fn of(_: &File, _: bool) -> Self {
            Self
        }

        pub(super) fn punch_hole(&self, _: &File, _: u64, _: u64) -> io::Result<bool> {
            Ok(false)
        }

        pub(super) fn zero_range(&self, _: &File, _: u64, _: u64) -> io::Result<bool> {
            Ok(false)
        }

        pub(super) fn write_stable(&self, _: &File, _: u64, _: &[u8]) -> io::Result<bool> {
            Ok(false)
        }

        pub(super) fn read_cached(&self, _: &File, _: u64, _: &mut [u8]) -> bool {
            false
        }

        #[cfg(test)]
        pub(super) fn refuse_all(&self) {}
    }

    pub(super) fn read_ahead(_: &File, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn extents(
        _: &File,
        range: Range<u64>,
        _: u64,
        limit: usize,
    ) -> io::Result<Vec<Extent>> {
        let known = !range.is_empty() && limit > 0;
        Ok(Vec::from_iter(known.then(|| Extent {
            length: range.end - range.start,
            content: Content::Data,
        })))
    }

    pub(super) fn is_hole(_: &File, _: u64, _: u64) -> io::Result<bool> {
        Ok(false)
    }
}

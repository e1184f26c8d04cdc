//! The map of an export: its extents as a table or as JSON, then what they add up to, and a
//! picture.
//!
//! Extents are written as they come. However many a server has or makes up, no more than those of
//! one reply are in memory.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::mem;

use anyhow::{Context, Result, ensure};
use indicatif::BinaryBytes;
use nbd_proto::wire::Name;
use serde_json::json;

use super::extents::{Extent, Meaning, Merge, Totals};
use super::link::Place;
use super::picture::Picture;
use super::progress::Progress;
use super::status::BlockStatus;

/// Lines are written many at once: there may be millions.
const BUFFER: usize = 64 << 10;

/// Where nobody says how wide a line is.
const WIDTH: usize = 80;

/// How a map is to be made.
#[derive(Clone, Debug)]
pub(crate) struct Wish<'a> {
    pub(crate) context: &'a Name,
    pub(crate) json: bool,
    /// How many extents are taken before it is given up.
    pub(crate) max_extents: u64,
}

/// Writes the map of an export. What is said besides goes to `remark`.
///
/// # Errors
///
/// If it could not be completed. What was written until then is a part of the truth; of JSON, it
/// is a part that no parser takes for the whole.
pub(crate) fn map(place: &Place<'_>, wish: &Wish<'_>, remark: impl Fn(&str)) -> Result<()> {
    let mut status = BlockStatus::open(place, wish.context)?;
    let (size, end) = (status.session().size(), status.end());
    if end < size {
        remark(&format!(
            "the last {} bytes are less than a block and cannot be asked about",
            size - end
        ));
    }
    let mut lines = Lines::new(wish, size, Progress::new(end));
    let mut merge = Merge::default();
    lines.begin();
    let end = take_all(&mut status, wish, &mut merge, &mut lines);
    if let Some(last) = merge.finish() {
        lines.push(last)?;
    }
    if end.is_err() {
        // What is known is shown, and then why it ends there. If that fails, the first reason is
        // the better story.
        let _ = lines.write();
        return end;
    }
    status.close();
    lines.finish()
}

fn take_all(
    status: &mut BlockStatus<'_, '_>,
    wish: &Wish<'_>,
    merge: &mut Merge,
    lines: &mut Lines,
) -> Result<()> {
    let mut taken = 0_u64;
    loop {
        let found = status.next()?;
        if found.is_empty() {
            return Ok(());
        }
        taken = taken.saturating_add(found.len() as u64);
        for extent in found.iter().filter_map(|&extent| merge.push(extent)) {
            lines.push(extent)?;
        }
        ensure!(
            taken <= wish.max_extents,
            "{}: more than {} extents up to offset {} of {}; to go on, raise --max-extents",
            status.uri(),
            wish.max_extents,
            status.position(),
            status.session().size(),
        );
        lines.progress.set(status.position());
    }
}

struct Lines {
    json: bool,
    meaning: Meaning,
    /// How many digits an offset may have.
    digits: usize,
    count: u64,
    size: u64,
    totals: Totals,
    picture: Picture,
    text: String,
    progress: Progress,
}

impl Lines {
    fn new(wish: &Wish<'_>, size: u64, progress: Progress) -> Self {
        Self {
            json: wish.json,
            meaning: Meaning::of(wish.context.as_str()),
            digits: size.to_string().len().max("offset".len()),
            count: 0,
            size,
            totals: Totals::default(),
            picture: Picture::new(size, width()),
            text: String::new(),
            progress,
        }
    }

    fn begin(&mut self) {
        let digits = self.digits;
        if self.json {
            self.text.push('[');
        } else {
            let _ = writeln!(
                self.text,
                "{:>digits$}  {:>digits$}  state",
                "offset", "length"
            );
        }
    }

    fn push(&mut self, extent: Extent) -> Result<()> {
        let Extent {
            offset,
            length,
            flags,
        } = extent;
        self.totals.add(extent);
        self.picture.draw(extent, self.meaning.is_full(flags));
        let digits = self.digits;
        // Writing to a String does not fail.
        let _ = if self.json {
            let comma = if self.count > 0 { "," } else { "" };
            let words = self.meaning.describe(flags).map(|words| json!(words));
            let words =
                words.map_or_else(String::new, |words| format!(", \"description\": {words}"));
            write!(
                self.text,
                "{comma}\n{{\"offset\": {offset}, \"length\": {length}, \"type\": {flags}{words}}}"
            )
        } else {
            let words = self.words(Some(flags));
            writeln!(self.text, "{offset:>digits$}  {length:>digits$}  {words}")
        };
        self.count += 1;
        if self.text.len() >= BUFFER {
            self.write()?;
        }
        Ok(())
    }

    fn words(&self, flags: Option<u64>) -> String {
        match flags {
            Some(flags) => self
                .meaning
                .describe(flags)
                .unwrap_or_else(|| format!("flags {flags:#x}")),
            None => "others".to_owned(),
        }
    }

    fn finish(mut self) -> Result<()> {
        self.progress.clear();
        if self.json {
            self.text.push_str("\n]\n");
            return self.write();
        }
        let digits = self.digits;
        let mut text = mem::take(&mut self.text);
        let _ = writeln!(text, "\n{:>digits$}  {:>digits$}  state", "total", "");
        for (flags, bytes) in self.totals.all() {
            let words = self.words(flags);
            let percent = percent(bytes, self.size);
            let _ = writeln!(text, "{bytes:>digits$}  {percent:>digits$}  {words}");
        }
        let (full, empty) = self.meaning.legend();
        let cell = BinaryBytes(self.picture.cell_size());
        let _ = writeln!(
            text,
            "\neach character is {cell}: # {full}, . {empty}, + both\n{}",
            self.picture
        );
        self.text = text;
        self.write()
    }

    fn write(&mut self) -> Result<()> {
        let text = mem::take(&mut self.text);
        let written = self.progress.aside(|| {
            let mut out = io::stdout().lock();
            out.write_all(text.as_bytes()).and_then(|()| out.flush())
        });
        written.context("cannot write the map")
    }
}

/// A share of the whole, rounded down to a tenth.
fn percent(part: u64, whole: u64) -> String {
    let thousandths = (u128::from(part) * 1000)
        .checked_div(whole.into())
        .unwrap_or(0);
    format!("{}.{} %", thousandths / 10, thousandths % 10)
}

/// How wide a line on the standard output can be.
fn width() -> usize {
    let out = io::stdout();
    let terminal = out
        .is_terminal()
        .then(|| rustix::termios::tcgetwinsize(&out));
    let columns = match terminal {
        Some(Ok(size)) => usize::from(size.ws_col),
        _ => std::env::var("COLUMNS")
            .ok()
            .and_then(|columns| columns.parse().ok())
            .unwrap_or(WIDTH),
    };
    // Some terminals say 0.
    if columns == 0 {
        WIDTH
    } else {
        columns.clamp(8, 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_never_rounded_up_to_all() {
        assert_eq!(percent(0, 0), "0.0 %");
        assert_eq!(percent(1, 3), "33.3 %");
        assert_eq!(percent(u64::MAX - 1, u64::MAX), "99.9 %");
        assert_eq!(percent(u64::MAX, u64::MAX), "100.0 %");
    }
}

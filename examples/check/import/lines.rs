//! Lines of a file that may have any bytes in it.

use std::io::{BufRead, Read};

use super::{ImportError, LineError};

/// The longest line. Enough for a read of as many blocks as a command may have.
pub(crate) const MOST_BYTES: u64 = 32 << 20;

pub(super) struct Lines<R> {
    input: R,
    line: Vec<u8>,
    number: u64,
    /// Whether the line was looked at, and has to come again.
    held: bool,
    /// The comments before the first line with words.
    remarks: Vec<String>,
}

/// Comments that are remembered, and their length.
const REMARKS: usize = 16;
const REMARK_BYTES: usize = 256;

impl<R: BufRead> Lines<R> {
    pub(super) const fn new(input: R) -> Self {
        Self {
            input,
            line: Vec::new(),
            number: 0,
            held: false,
            remarks: Vec::new(),
        }
    }

    /// The number of the next line and what is in it, without its end.
    pub(super) fn next(&mut self) -> Result<Option<(u64, &str)>, ImportError> {
        if !self.held && !self.read()? {
            return Ok(None);
        }
        self.held = false;
        let line = str::from_utf8(&self.line);
        let line = line.map_err(|_| LineError::NotText.at(self.number))?;
        Ok(Some((self.number, line.trim_end_matches(['\n', '\r']))))
    }

    /// Looks at the next line that has more than blanks and a comment. It comes again.
    pub(super) fn next_with_words(&mut self) -> Result<Option<(u64, &str)>, ImportError> {
        loop {
            let remark = match self.next()? {
                None => return Ok(None),
                Some((_, line)) if without_comment(line).is_empty() => {
                    line.split_once("//").map(|(_, it)| it.trim().to_owned())
                }
                Some(_) => break,
            };
            let short = remark.filter(|it| it.len() <= REMARK_BYTES);
            let room = REMARKS.saturating_sub(self.remarks.len());
            self.remarks.extend(short.into_iter().take(room));
        }
        self.held = true;
        let line = str::from_utf8(&self.line).unwrap_or_default();
        Ok(Some((self.number, line.trim())))
    }

    /// The comments before the first line with words.
    pub(super) fn remarks(&self) -> impl Iterator<Item = &str> {
        self.remarks.iter().map(String::as_str)
    }

    /// Whether the last line had no end: who wrote it may not have finished.
    pub(super) fn is_cut_off(&self) -> bool {
        self.line.last().is_some_and(|&it| it != b'\n')
    }

    fn read(&mut self) -> Result<bool, ImportError> {
        let mut next = Vec::new();
        std::mem::swap(&mut next, &mut self.line);
        next.clear();
        let mut limited = self.input.by_ref().take(MOST_BYTES + 1);
        let count = limited.read_until(b'\n', &mut next)?;
        self.line = next;
        if count == 0 {
            return Ok(false);
        }
        self.number += 1;
        if self.line.len() as u64 > MOST_BYTES {
            return Err(LineError::TooLong.at(self.number));
        }
        Ok(true)
    }
}

/// What stands before `//`, which begins a comment in the library's own form.
pub(super) fn without_comment(line: &str) -> &str {
    line.split("//").next().unwrap_or_default().trim()
}

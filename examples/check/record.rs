//! What was seen, in a file: as text, or as JSON lines if its name says so.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use nbd_proto::conformance::Event;

use super::import::{Header, json, text};

#[derive(Debug)]
pub(crate) struct Record {
    file: BufWriter<File>,
    as_json: bool,
}

impl Record {
    /// Begins a file with what is known before the first event.
    ///
    /// # Errors
    ///
    /// If it cannot be created.
    pub(crate) fn create(path: &Path, header: &Header) -> io::Result<Self> {
        let as_json = path.extension().is_some_and(|it| it == "jsonl");
        let mut file = BufWriter::new(File::create(path)?);
        match as_json {
            true => json::write_header(&mut file, header)?,
            false => text::write_header(&mut file, header)?,
        }
        Ok(Self { file, as_json })
    }

    /// The next event.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub(crate) fn write(&mut self, event: &Event) -> io::Result<()> {
        match self.as_json {
            true => json::write_event(&mut self.file, event),
            false => writeln!(self.file, "{event}"),
        }
    }

    /// Nothing more comes.
    ///
    /// # Errors
    ///
    /// If the rest cannot be written.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.file.flush()
    }
}

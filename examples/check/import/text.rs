//! [The library's own form](nbd_proto::conformance::History): a line for the granule, then a line
//! for each event, and comments, which begin with `//`.
//!
//! The promise is not part of that form. Two comments before the granule tell it all the same, which
//! is what `--record` writes; without them it is multi-conn, and zeroes at the beginning. `--promise`
//! comes before what they say. A last line without its end is not believed: half of a number is one,
//! too.
//!
//! ```text
//! // promise: multi-conn
//! // initial: unknown
//! granule 4096
//! c0 write #7 8192+4096 =1 fua
//! c0 done #7
//! ```

use std::io::{self, BufRead, Write};

use nbd_proto::conformance::{Event, HistoryError, Initial};

use super::judge::Judge;
use super::lines::{Lines, without_comment};
use super::{Found, Header, ImportError, Judged, LineError, Promised};

/// Writes the lines before the first event.
pub(crate) fn write_header(out: &mut impl Write, header: &Header) -> io::Result<()> {
    let initial = match header.initial {
        Initial::Unknown => "unknown",
        _ => "zeroes",
    };
    writeln!(out, "// promise: {}", header.promised)?;
    writeln!(out, "// initial: {initial}")?;
    writeln!(out, "granule {}", header.granule)
}

/// `promised` is believed before the file: who asks for another promise has a reason.
pub(super) fn judge<R: BufRead>(
    mut lines: Lines<R>,
    promised: Option<Promised>,
) -> Result<Judged, ImportError> {
    let Some((number, first)) = lines.next_with_words()? else {
        return Err(ImportError::Empty);
    };
    let granule = granule(without_comment(first));
    let granule = granule.ok_or(LineError::Form("`granule BYTES`").at(number))?;
    let (mut said, mut initial) = (None, Initial::Zeroes);
    for remark in lines.remarks() {
        match remark.split_once(": ") {
            Some(("promise", "multi-conn")) => said = Some(Promised::MultiConn),
            Some(("promise", "single-connection")) => said = Some(Promised::SingleConnection),
            Some(("initial", "unknown")) => initial = Initial::Unknown,
            _ => {}
        }
    }
    let mut header = Header::new(granule, promised.or(said).unwrap_or_default());
    header.initial = initial;
    let mut judge = Judge::new(&header);
    let mut violation = None;
    lines.next()?;
    while let Some((line, text)) = lines.next()? {
        let text = without_comment(text);
        if text.is_empty() {
            continue;
        }
        let event = text.parse::<Event>();
        // Half of a number is one, too.
        if lines.is_cut_off() {
            return Err(LineError::CutOff.at(line));
        }
        let event =
            event.map_err(|error: HistoryError| LineError::Form(error.expected).at(line))?;
        let judged = judge.record(&event).map_err(|why| why.at(line))?;
        if let Some(it) = judged {
            violation = Some(Found {
                line,
                violation: it,
            });
            break;
        }
    }
    Ok(Judged {
        header,
        summary: judge.summary(),
        violation,
    })
}

fn granule(line: &str) -> Option<u64> {
    let granule = line.strip_prefix("granule ")?.trim().parse().ok()?;
    (granule > 0).then_some(granule)
}

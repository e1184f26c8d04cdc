//! The library's own form: a line for the granule, then a line for each event, and comments.

use std::io::BufRead;

use nbd_proto::conformance::Event;

use super::judge::Judge;
use super::lines::{Lines, without_comment};
use super::{Found, Header, ImportError, Judged, LineError, Promised};

pub(super) fn judge<R: BufRead>(
    mut lines: Lines<R>,
    promised: Promised,
) -> Result<Judged, ImportError> {
    let Some((number, first)) = lines.next_with_words()? else {
        return Err(ImportError::Empty);
    };
    let granule = granule(without_comment(first));
    let granule = granule.ok_or(LineError::Form("`granule BYTES`").at(number))?;
    let header = Header::new(granule, promised);
    let mut judge = Judge::new(&header);
    let mut violation = None;
    lines.next()?;
    while let Some((line, text)) = lines.next()? {
        let text = without_comment(text);
        if text.is_empty() {
            continue;
        }
        let event: Event =
            text.parse()
                .map_err(|error: nbd_proto::conformance::HistoryError| {
                    LineError::Form(error.expected).at(line)
                })?;
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

//! Whether an export is empty, so that nothing is lost by writing to it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nbd_proto::conformance;
use nbd_proto::session::ReplyStyle;
use nbd_proto::wire::CommandType;
use rustix::event::{PollFd, PollFlags};

use super::contents::is_zero;
use super::shared::connection::{Completion, Connection, Extent};
use super::shared::signals::Signals;
use super::shared::stream::wait_any;

/// How much is read at once, and how often at the same time.
const REQUEST: u64 = 1 << 20;
const AT_ONCE: usize = 4;

/// How much is asked about at once: as much as fits in a request, and where that has 64 bits, a
/// few times for all that an export may have.
const STATUS: u64 = 1 << 30;
const EXTENDED_STATUS: u64 = 1 << 60;

/// The place of something that is not zero.
///
/// What the server says reads as zeroes is believed; all else is read.
///
/// # Errors
///
/// If it cannot be read, or a signal came.
pub(crate) fn first_data(connection: &mut Connection, signals: &Signals) -> Result<Option<u64>> {
    let size = connection.session().size();
    let mut step = match connection.session().reply_style() {
        ReplyStyle::Extended => EXTENDED_STATUS,
        _ => STATUS,
    };
    let mut at: u64 = 0;
    while at < size {
        let end = size.min(at.saturating_add(step));
        let told = status(connection, at, end, signals)?;
        if told.is_none() && step > STATUS {
            step = STATUS;
            continue;
        }
        // A server that cannot tell can be read.
        let (end, zero) = told.unwrap_or((end, false));
        if !zero && let Some(data) = data_in(connection, at, end, signals)? {
            return Ok(Some(data));
        }
        at = end;
    }
    Ok(None)
}

/// The same for a few places, all of which are read.
///
/// # Errors
///
/// If one cannot be read, or a signal came.
pub(crate) fn first_data_of(
    connection: &mut Connection,
    places: &[conformance::Extent],
    signals: &Signals,
) -> Result<Option<u64>> {
    for place in places {
        let end = place.offset + place.length;
        if let Some(data) = data_in(connection, place.offset, end, signals)? {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// Up to where it is the same, and whether that is said to be zeroes, if the server can tell.
fn status(
    connection: &mut Connection,
    at: u64,
    end: u64,
    signals: &Signals,
) -> Result<Option<(u64, bool)>> {
    let minimum = u64::from(connection.session().block_sizes().minimum());
    let whole = end - end % minimum;
    if !connection.has_status() || whole <= at {
        return Ok(None);
    }
    connection.block_status(at, whole - at)?;
    let completion = next(connection, signals)?;
    let first = completion.extents.first();
    let told = first.filter(|it| completion.result.is_ok() && it.range.end > at);
    Ok(told.map(|Extent { range, zero }| (range.end.min(end), *zero)))
}

fn data_in(
    connection: &mut Connection,
    from: u64,
    end: u64,
    signals: &Signals,
) -> Result<Option<u64>> {
    let sizes = connection.session().block_sizes();
    let minimum = u64::from(sizes.minimum());
    let request = REQUEST.min(sizes.max_payload().into());
    let request = (request - request % minimum).max(minimum);
    let mut at = from;
    let mut in_flight = 0;
    let mut found: Option<u64> = None;
    loop {
        while at < end && in_flight < AT_ONCE && found.is_none() {
            let length = request.min(end - at);
            // What does not fill a block cannot be read, nor written.
            let length = length - length % minimum;
            if length == 0 {
                at = end;
                break;
            }
            connection.read(at, usize::try_from(length)?, Vec::new())?;
            at += length;
            in_flight += 1;
        }
        if in_flight == 0 {
            return Ok(found);
        }
        let completion = next(connection, signals)?;
        in_flight -= 1;
        let Completion {
            request, buffer, ..
        } = &completion;
        if let Err(why) = &completion.result {
            bail!(
                "cannot read {} bytes at {}: {why}",
                request.length,
                request.offset
            );
        }
        if request.kind == CommandType::READ && !is_zero(buffer) {
            let before = buffer.iter().take_while(|&&byte| byte == 0).count() as u64;
            let place = request.offset + before;
            found = Some(found.map_or(place, |other| other.min(place)));
        }
    }
}

/// Waits for the next answer.
fn next(connection: &mut Connection, signals: &Signals) -> Result<Completion> {
    loop {
        if let Some(completion) = connection.next_completed() {
            return Ok(completion);
        }
        if signals.caught().is_some() {
            bail!("stopped by a signal");
        }
        let driven = connection.drive();
        if let Some(completion) = connection.next_completed() {
            return Ok(completion);
        }
        driven?;
        if connection.has_more() {
            continue;
        }
        let time = connection.deadline().map_or(Duration::ZERO, |deadline| {
            deadline.saturating_duration_since(Instant::now())
        });
        let mut fds = [
            PollFd::new(connection, connection.interest()),
            PollFd::new(signals, PollFlags::IN),
        ];
        wait_any(&mut fds, Some(time)).context("cannot wait for the server")?;
    }
}

//! Steps of a history, drawn: time goes down, each connection has a column, or several if it has
//! several commands in flight.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use super::history::Content;
use super::violation::{Action, Step};

/// Steps of one connection that do not overlap in time.
struct Lane<'a> {
    conn: u32,
    /// Whether it is the first of its connection.
    named: bool,
    steps: Vec<&'a Step>,
}

/// Draws steps, which are in the order of their invocations.
pub(super) fn draw(steps: &[Step], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let crashes = steps.iter().filter(|it| it.action == Action::Crash);
    let crashes: Vec<&Step> = crashes.collect();
    let rows: BTreeMap<u64, ()> = steps.iter().flat_map(ends).map(|it| (it, ())).collect();
    let lanes = lanes(steps);
    let widths: Vec<usize> = lanes.iter().map(Lane::width).collect();
    let heads = lanes.iter().map(|lane| {
        if lane.named {
            format!("c{}", lane.conn)
        } else {
            String::new()
        }
    });
    line(f, "event", &heads.collect::<Vec<_>>(), &widths)?;
    for &event in rows.keys() {
        let cells = lanes.iter().map(|lane| lane.cell(event, &crashes));
        let mut cells: Vec<String> = cells.collect();
        let of_crash = crashes.iter().find(|it| ends(it).any(|it| it == event));
        if let (Some(crash), Some(first)) = (of_crash, cells.first_mut()) {
            let crashed = crash.invoked == event;
            *first = (if crashed { "*** crash" } else { "*** reopened" }).to_string();
        }
        line(f, &event.to_string(), &cells, &widths)?;
    }
    Ok(())
}

fn ends(step: &Step) -> impl Iterator<Item = u64> + use<> {
    [Some(step.invoked), step.replied].into_iter().flatten()
}

fn line(
    f: &mut fmt::Formatter<'_>,
    event: &str,
    cells: &[String],
    widths: &[usize],
) -> fmt::Result {
    let mut text = format!("  {event:>5}");
    for (cell, width) in cells.iter().zip(widths) {
        text.push_str("  ");
        text.push_str(&format!("{cell:<width$}"));
    }
    writeln!(f, "{}", text.trim_end())
}

/// Each step in the first lane of its connection where there is room.
fn lanes(steps: &[Step]) -> Vec<Lane<'_>> {
    let mut lanes: Vec<Lane<'_>> = Vec::new();
    for step in steps {
        let Some(conn) = step.conn else {
            continue;
        };
        let mut of_conn = lanes.iter_mut().filter(|it| it.conn == conn);
        if let Some(lane) = of_conn.find(|it| it.is_free_at(step.invoked)) {
            lane.steps.push(step);
            continue;
        }
        let named = !lanes.iter().any(|it| it.conn == conn);
        let steps = [step].into();
        lanes.push(Lane { conn, named, steps });
    }
    lanes.sort_by_key(|it| it.conn);
    lanes
}

impl Lane<'_> {
    fn is_free_at(&self, event: u64) -> bool {
        let ended =
            |it: &&Step| it.action == Action::Disconnect || it.replied.is_some_and(|it| it < event);
        self.steps.iter().all(ended)
    }

    fn width(&self) -> usize {
        let cells = self.steps.iter().flat_map(|it| [began(it), ended(it)]);
        let widths = cells.map(|it| it.chars().count());
        widths.max().unwrap_or(0)
    }

    fn cell(&self, event: u64, crashes: &[&Step]) -> String {
        for &step in &self.steps {
            if step.invoked == event {
                return began(step);
            }
            if step.replied == Some(event) {
                return ended(step);
            }
            let crash = crashes.iter().map(|it| it.invoked);
            let crash = crash.filter(|&it| it > step.invoked).min();
            let end = match step.action {
                Action::Disconnect => step.invoked,
                _ => step.replied.or(crash).unwrap_or(u64::MAX),
            };
            if step.invoked < event && event < end {
                return "│".to_string();
            }
        }
        String::new()
    }
}

fn began(step: &Step) -> String {
    let fua = if step.fua { " fua" } else { "" };
    match step.action {
        Action::Write(content) => format!("┌ write ={content}{fua}"),
        Action::Zero => format!("┌ zero{fua}"),
        Action::Trim => format!("┌ trim{fua}"),
        Action::Read(_) => "┌ read".to_string(),
        Action::Flush => "┌ flush".to_string(),
        Action::Disconnect => "x gone".to_string(),
        Action::Crash => String::new(),
    }
}

fn ended(step: &Step) -> String {
    match step.action {
        _ if step.replied.is_none() => String::new(),
        _ if step.failed => "└ failed".to_string(),
        Action::Read(Content::ZEROES) => "└ found zeroes".to_string(),
        Action::Read(Content::MIXED) => "└ found a mixture".to_string(),
        Action::Read(content) => format!("└ found ={content}"),
        _ => "└ done".to_string(),
    }
}

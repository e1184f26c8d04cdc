//! The table as it is written: sections, rows, cells.

/// A row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// What the heading above it names: a type of `wire`, or else the whole heading.
    pub(crate) section: &'static str,
    pub(crate) name: &'static str,
    /// The number or bit, where the section has them; else empty.
    pub(crate) number: &'static str,
    pub(crate) server: bool,
    pub(crate) client: bool,
}

/// All rows of a text, in its order.
pub(crate) fn rows(text: &'static str) -> Vec<Row> {
    let mut section = "";
    let mut rows = Vec::new();
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = heading.split('`').nth(1).unwrap_or(heading);
        }
        if line.starts_with('|') && !line.starts_with("|---") && !line.ends_with("| client |") {
            rows.push(row(section, line));
        }
    }
    rows
}

fn row(section: &'static str, line: &'static str) -> Row {
    let line_cells = line.trim_matches('|').split('|');
    let cells: Vec<&str> = line_cells.map(str::trim).collect();
    let (name, number, server, client) = match cells[..] {
        [name, number, server, client] => (name, number, server, client),
        [name, server, client] => (name, "", server, client),
        _ => panic!("{line}: not three or four cells"),
    };
    let supported = |cell| match cell {
        "yes" => true,
        "no" => false,
        _ => panic!("{line}: {cell:?} is neither yes nor no"),
    };
    Row {
        section,
        name,
        number,
        server: supported(server),
        client: supported(client),
    }
}

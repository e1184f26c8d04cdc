//! Command lines that cannot be understood.

/// What is wrong with the command line of a program, without what its `--help` says as well.
pub(crate) fn one_line(error: &clap::Error, program: &str) -> String {
    let error = error.render().to_string();
    let error = error.strip_prefix("error: ").unwrap_or(&error);
    let words: Vec<_> = error
        .lines()
        .take_while(|line| !line.is_empty())
        .map(str::trim)
        .collect();
    format!("{}; see {program} --help", words.join(" "))
}

//! Command lines, as a person types them next.

use std::path::Path;

use crate::cli;

/// What runs `arguments` on the same data folder.
pub(crate) fn command(data_dir: &Path, arguments: &str) -> String {
    let folder = match data_dir == Path::new(cli::DATA_DIR) {
        true => String::new(),
        false => format!("--data-dir {} ", quoted(&data_dir.display().to_string())),
    };
    format!("cargo run -p example-orders -- {folder}{arguments}")
}

/// A line for each of `choices`: what runs it, and when it is the one.
pub(crate) fn lines<'a>(data_dir: &Path, choices: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let choices = Vec::from_iter(choices);
    let width = choices.iter().map(|(what, _)| what.len()).max().unwrap_or_default();
    let line = |(what, when): &(&str, &str)| format!("   {}   {when}", command(data_dir, &format!("{what:<width$}")));
    choices.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A word as a shell takes it.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_names_the_folder_unless_it_is_the_usual_one() {
        assert_eq!(command(Path::new(".data"), "report"), "cargo run -p example-orders -- report");
        assert_eq!(
            command(Path::new("my data"), "report"),
            "cargo run -p example-orders -- --data-dir 'my data' report"
        );
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }

    #[test]
    fn what_can_be_typed_stands_in_lines_with_when_beside_it() {
        let said = lines(Path::new(".data"), [("report", "any time"), ("report --json", "for programs")]);
        let command = "cargo run -p example-orders -- report";
        assert_eq!(said, format!("   {command}          any time\n   {command} --json   for programs"));
    }
}

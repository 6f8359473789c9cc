//! Who types.

use std::{env, process::Command};

/// The login name of whoever started this program.
pub(crate) fn name() -> String {
    let given = ["USER", "LOGNAME"].iter().filter_map(|name| env::var(name).ok()).find(|name| !name.is_empty());
    given.or_else(ask).unwrap_or_else(|| "unknown".into())
}

/// The system's answer, where the environment does not say.
fn ask() -> Option<String> {
    let output = Command::new("id").arg("-un").output().ok()?;
    let name = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !name.is_empty()).then_some(name)
}

//! A shell that outlives the test process and tidies up behind it.
//!
//! libtest ends with `process::exit`, which drops no static, and a test may be killed. A child that waits for the end
//! of a pipe sees every kind of end.

use std::{
    ffi::OsStr,
    io,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
};

/// Tidies up when it is dropped, or when this process ends.
#[derive(Debug)]
pub(super) struct Watchdog {
    shell: Child,
    pipe: Option<ChildStdin>,
}

/// What becomes of the server and its files.
#[derive(Debug, Clone, Copy)]
pub(super) enum Afterwards {
    /// The last one out stops the server; the cluster stays for the next run.
    Keep,
    /// The server is stopped and its files are deleted.
    Remove,
}

impl Watchdog {
    pub(super) fn watch(data: &Path, cluster: &Path, afterwards: Afterwards) -> io::Result<Self> {
        let word = match afterwards {
            Afterwards::Keep => "keep",
            Afterwards::Remove => "remove",
        };
        let tools = Command::new("sh").args(["-c", "command -v flock || command -v perl"]).output()?;
        if !tools.status.success() {
            return Err(io::Error::other("it needs `flock` or `perl`, and neither is here"));
        }
        let mut command = Command::new("sh");
        command.args([OsStr::new("-c"), include_str!("watchdog.sh").as_ref(), "annals-watchdog".as_ref()]);
        command.args([data.as_os_str(), cluster.as_os_str(), word.as_ref()]).current_dir("/");
        // No output of the test process is held open, and the terminal's Ctrl-C does not come here.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut shell = command.spawn()?;
        let pipe = shell.stdin.take();
        Ok(Self { shell, pipe })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.pipe.take());
        let _ = self.shell.wait();
    }
}

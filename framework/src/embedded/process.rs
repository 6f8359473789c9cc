//! Processes of the operating system, by pid.

use std::{
    fs, io,
    os::unix::process::CommandExt,
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

/// How long a killed process may take to be gone.
const KILLED: Duration = Duration::from_secs(5);

/// Sends a signal (`INT`, `KILL`) to every process of `pids`; those that are gone are passed over.
///
/// The shell's own `kill` does it: every machine has that one, and this crate has no unsafe code.
pub(crate) fn signal(name: &str, pids: &[u32]) {
    send(name, pids.iter().map(u32::to_string));
}

fn send(name: &str, targets: impl IntoIterator<Item = String>) {
    let mut kill = Command::new("sh");
    kill.args(["-c", r#"for pid; do kill -s "$0" -- "$pid"; done"#, name]).args(targets);
    let _ = kill.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
}

/// The process's arguments in one line, or `None` when it is gone (or a zombie).
pub(crate) fn command_line(pid: u32) -> Option<String> {
    let bytes = match fs::read(format!("/proc/{pid}/cmdline")) {
        Ok(bytes) => bytes,
        Err(_) if fs::exists("/proc/self/cmdline").unwrap_or(false) => return None,
        Err(_) => Command::new("ps").args(["-o", "command=", "-p", &pid.to_string()]).output().ok()?.stdout,
    };
    let line = String::from_utf8_lossy(&bytes).replace('\0', " ");
    (!line.trim().is_empty()).then_some(line)
}

/// The processes whose parent is `pid`.
#[cfg(feature = "testing")]
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let Ok(output) = Command::new("ps").args(["-A", "-o", "pid=,ppid="]).output() else { return children_in_proc(pid) };
    let text = String::from_utf8_lossy(&output.stdout);
    let pairs = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace().map(str::parse::<u32>);
        Some((words.next()?.ok()?, words.next()?.ok()?))
    });
    pairs.filter(|(_, parent)| *parent == pid).map(|(child, _)| child).collect()
}

/// The same without `ps`, which slim images lack.
#[cfg(feature = "testing")]
fn children_in_proc(pid: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|child| {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        // The name, in brackets, may hold spaces: state and parent follow the last bracket.
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        parent == Some(pid)
    })
    .collect()
}

/// Runs a command to its end and captures what it prints; kills it, and what it started, at the deadline or when the
/// start that it is part of is given up.
pub(super) fn run(command: &mut Command, deadline: Duration, given_up: &GivenUp) -> io::Result<Output> {
    // A group of its own: it can be killed as a whole, and the terminal's Ctrl-C reaches the app alone.
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn()?;
    let pid = child.id();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    let mut output = None;
    wait_until(Instant::now() + deadline, || {
        output = receiver.try_recv().ok();
        output.is_some() || given_up.is_set()
    });
    output.unwrap_or_else(|| {
        send("KILL", [format!("-{pid}")]);
        let _ = receiver.recv_timeout(KILLED);
        given_up.check()?;
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("no end within {} s", deadline.as_secs())))
    })
}

/// Whether nobody waits for a start any more; it is then broken off.
#[derive(Debug, Clone, Default)]
pub(super) struct GivenUp(Arc<AtomicBool>);

impl GivenUp {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn check(&self) -> io::Result<()> {
        match self.is_set() {
            true => Err(io::Error::new(io::ErrorKind::Interrupted, "nobody waits for it any more")),
            false => Ok(()),
        }
    }
}

/// Asks until the answer is yes; `false` when the deadline comes first.
pub(crate) fn wait_until(deadline: Instant, mut condition: impl FnMut() -> bool) -> bool {
    let mut pause = Duration::from_millis(1);
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

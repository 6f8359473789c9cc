//! The server process of a cluster: is there one, does it answer, stop it.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

use super::{Attempt, EmbeddedError, error::Tried, place::Place, process};

/// How long an orderly shutdown may take before the server is told to stop at once.
const SHUTDOWN: Duration = Duration::from_secs(30);

/// The server that runs on the cluster when it takes connections, waiting for one that starts, recovers or stops.
pub(super) fn running(place: &Place, attempt: &Attempt) -> Result<Option<(u16, u32)>, EmbeddedError> {
    let cluster = place.cluster();
    let mut found = None;
    let answered = process::wait_until(Instant::now() + attempt.deadline, || {
        let Some(pid) = running_pid(&cluster) else {
            found = None;
            return true;
        };
        found = Some((0, pid));
        if attempt.given_up.is_set() {
            return true;
        }
        let Some(Postmaster { port: Some(port), ready: true, .. }) = Postmaster::read(&cluster) else { return false };
        found = Some((port, pid));
        answers(port)
    });
    attempt.given_up.check().tried("go on with the start of PostgreSQL")?;
    match found {
        Some((_, pid)) if !answered => Err(EmbeddedError::Timeout {
            what: format!("the PostgreSQL that runs here (pid {pid}) does not answer"),
            waited: attempt.deadline,
            next: format!("see {}; if it hangs, type: kill -9 {pid} (what is committed stays)", place.log().display()),
        }),
        found => Ok(found),
    }
}

/// The server's process if one runs on the cluster, whatever its state.
fn running_pid(cluster: &Path) -> Option<u32> {
    let pid = Postmaster::read(cluster)?.pid;
    process::command_line(pid)?.contains(&*cluster.to_string_lossy()).then_some(pid)
}

pub(super) fn is_running(cluster: &Path) -> bool {
    running_pid(cluster).is_some()
}

/// Stops the server in order, if one runs.
pub(super) fn stop(cluster: &Path) -> Result<(), EmbeddedError> {
    running_pid(cluster).map_or(Ok(()), stop_process)
}

/// Stops a server process in order, even one that is not ready yet.
pub(super) fn stop_process(pid: u32) -> Result<(), EmbeddedError> {
    let gone = || process::command_line(pid).is_none();
    for (signal, limit) in [("INT", SHUTDOWN), ("QUIT", Duration::from_secs(10))] {
        process::signal(signal, &[pid]);
        if process::wait_until(Instant::now() + limit, gone) {
            return Ok(());
        }
    }
    Err(EmbeddedError::Timeout {
        what: format!("PostgreSQL (pid {pid}) does not stop"),
        waited: SHUTDOWN + Duration::from_secs(10),
        next: format!("type: kill -9 {pid} (what is committed stays)"),
    })
}

/// What the server itself writes about itself.
pub(super) struct Postmaster {
    pub(super) pid: u32,
    pub(super) port: Option<u16>,
    pub(super) ready: bool,
}

impl Postmaster {
    pub(super) fn read(cluster: &Path) -> Option<Self> {
        let text = fs::read_to_string(cluster.join("postmaster.pid")).ok()?;
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        Some(Self {
            pid: lines.first()?.parse().ok()?,
            port: lines.get(3).and_then(|line| line.parse().ok()),
            ready: lines.get(7).is_some_and(|line| *line == "ready"),
        })
    }
}

/// After a crash another program may have the pid in `postmaster.pid` (containers begin at 1 again), and the server
/// would take it for a running one. Two servers are kept apart by the shared memory block all the same.
pub(super) fn forget_stranger(cluster: &Path) {
    if running_pid(cluster).is_none() {
        let _ = fs::remove_file(cluster.join("postmaster.pid"));
    }
}

/// Sends the first message of the protocol (may I use TLS?), which the server answers with one byte.
fn answers(port: u16) -> bool {
    let limit = Duration::from_secs(1);
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f])?;
        let mut answer = [0];
        stream.read_exact(&mut answer).map(|()| answer)
    };
    ask().is_ok_and(|answer| matches!(&answer, b"N" | b"S"))
}

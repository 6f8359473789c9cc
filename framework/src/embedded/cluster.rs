//! One cluster: made, started, asked, stopped.

use std::{
    fs::{self, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::{fs::OpenOptionsExt, fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::Stdio,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use super::{
    EmbeddedError, Options,
    account::{self, Account},
    binaries::Binaries,
    connection::{Connection, write_private},
    error::Tried,
    place::Place,
    process,
};

/// How long an orderly shutdown may take before the server is told to stop at once.
const SHUTDOWN: Duration = Duration::from_secs(30);

/// The major version that made the cluster, or `None` when there is none.
pub(super) fn major(cluster: &Path) -> Option<u32> {
    fs::read_to_string(cluster.join("PG_VERSION")).ok()?.trim().parse().ok()
}

/// Makes the cluster in a folder that appears when it is complete.
pub(super) fn create(place: &Place, binaries: &Binaries, options: &Options) -> Result<(), EmbeddedError> {
    (options.announce)(&format!("making a PostgreSQL {} cluster in {}", binaries.version, place.home.display()));
    let connection = Connection::with_new_password()?;
    connection.write(&place.data)?;

    let new = place.home.join("pg.new");
    let password = place.home.join("pg.password");
    let _ = fs::remove_dir_all(&new);
    fs::create_dir(&new)
        .and_then(|()| fs::set_permissions(&new, fs::Permissions::from_mode(0o700)))
        .tried(format_args!("make the folder {}", new.display()))?;
    write_private(&password, connection.password.as_bytes())?;
    Account::owns(place.account.as_ref(), &new)?;
    Account::owns(place.account.as_ref(), &password)?;

    let mut initdb = binaries.program("initdb", place.account.as_ref());
    initdb.args(["-U", "postgres", "-A", "scram-sha-256", "-E", "UTF8", "--no-locale", "--no-instructions"]);
    initdb.arg("--pwfile").arg(&password).arg("-D").arg(&new);
    if !options.durable {
        initdb.arg("--no-sync");
    }
    let output = process::run(&mut initdb, options.deadline);
    let _ = fs::remove_file(&password);
    let output = output.tried("run initdb")?;
    if !output.status.success() {
        let _ = fs::remove_dir_all(&new);
        let words = [output.stdout, output.stderr].concat();
        return Err(EmbeddedError::Initdb { output: last_lines(&String::from_utf8_lossy(&words)) });
    }
    fs::rename(&new, place.cluster()).tried(format_args!("move the cluster to {}", place.cluster().display()))
}

/// Starts the server and waits until it takes connections.
pub(super) fn launch(
    place: &Place,
    binaries: &Binaries,
    options: &Options,
) -> Result<(Connection, u32), EmbeddedError> {
    let cluster = place.cluster();
    let Some(saved) = Connection::read(&place.data) else {
        return Err(EmbeddedError::NoPassword { cluster, file: place.data.join("pg.json") });
    };
    let begun = Instant::now();
    let mut port = options.port.unwrap_or(saved.port);
    loop {
        if options.port.is_none() {
            port = free_port(port)?;
        }
        let mut connection = saved.clone().at(port);
        connection.version = binaries.version.clone();
        connection.binaries = binaries.folder.display().to_string();
        connection.durable = options.durable;
        connection.write(&place.data)?;

        let in_time = begun.elapsed() < options.deadline;
        match launch_at(port, place, binaries, options)? {
            Launched::Ready(pid) => return Ok((connection, pid)),
            // The port went to somebody else, or what a killed server left is still on its way out.
            Launched::Ended(tail) if in_time && passes(&tail) => thread::sleep(Duration::from_millis(50)),
            Launched::Ended(tail) => return Err(EmbeddedError::Start { log: place.log(), tail }),
        }
    }
}

enum Launched {
    Ready(u32),
    /// It ended; the last lines of what it wrote.
    Ended(String),
}

/// Whether a start that ended so may go well a moment later. `lc_messages` is C, so these are the server's words.
fn passes(tail: &str) -> bool {
    ["could not create any TCP/IP sockets", "pre-existing shared memory block", "lock file \"postmaster.pid\""]
        .iter()
        .any(|reason| tail.contains(reason))
}

fn launch_at(port: u16, place: &Place, binaries: &Binaries, options: &Options) -> Result<Launched, EmbeddedError> {
    let cluster = place.cluster();
    forget_stranger(&cluster);
    let (log, log_start) = open_log(place)?;
    let mut postgres = binaries.program("postgres", place.account.as_ref());
    postgres.arg("-D").arg(&cluster);
    for (name, value) in settings(port, options) {
        postgres.arg("-c").arg(format!("{name}={value}"));
    }
    // A group of its own: the terminal's Ctrl-C is for the app, which still needs its database to end in order.
    postgres.process_group(0).stdin(Stdio::null());
    postgres.stdout(log.try_clone().tried("open the log twice")?).stderr(log);
    let mut child = postgres.spawn().tried(format_args!("run {}/postgres", binaries.folder.display()))?;

    // Somebody has to wait for the process, or it stays a zombie when another process stops it.
    let pid = child.id();
    let (ended, end) = mpsc::channel();
    thread::spawn(move || ended.send(child.wait()));

    let mut exited = false;
    let ready = process::wait_until(Instant::now() + options.deadline, || {
        exited = end.try_recv().is_ok();
        exited || Postmaster::read(&cluster).is_some_and(|it| it.pid == pid && it.ready)
    });
    match (exited, ready) {
        (true, _) => Ok(Launched::Ended(tail_of(place, log_start))),
        (false, true) => Ok(Launched::Ready(pid)),
        (false, false) => Err(EmbeddedError::Timeout {
            what: format!("PostgreSQL (pid {pid}) is not ready"),
            waited: options.deadline,
            next: format!("see {}; it may be recovering: start again to go on waiting", place.log().display()),
        }),
    }
}

/// The settings of one start. Later ones win, so the user's own come last.
fn settings(port: u16, options: &Options) -> Vec<(String, String)> {
    let durable = if options.durable { "on" } else { "off" };
    let fixed = [
        ("listen_addresses", "127.0.0.1"),
        ("port", &port.to_string()),
        ("unix_socket_directories", ""),
        ("max_connections", "200"),
        ("max_prepared_transactions", "10"),
        ("shared_buffers", "128MB"),
        ("fsync", durable),
        ("full_page_writes", durable),
        ("synchronous_commit", "on"),
        ("logging_collector", "off"),
        ("lc_messages", "C"),
        ("timezone", "UTC"),
        ("log_timezone", "UTC"),
    ];
    let fixed = fixed.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
    fixed.chain(options.settings.iter().cloned()).collect()
}

/// The server that runs on the cluster when it takes connections, waiting for one that starts, recovers or stops.
pub(super) fn running(place: &Place, options: &Options) -> Result<Option<(u16, u32)>, EmbeddedError> {
    let cluster = place.cluster();
    let mut found = None;
    let answered = process::wait_until(Instant::now() + options.deadline, || {
        let Some(pid) = running_pid(&cluster) else {
            found = None;
            return true;
        };
        found = Some((0, pid));
        let Some(Postmaster { port: Some(port), ready: true, .. }) = Postmaster::read(&cluster) else { return false };
        found = Some((port, pid));
        answers(port)
    });
    match found {
        Some((_, pid)) if !answered => Err(EmbeddedError::Timeout {
            what: format!("the PostgreSQL that runs here (pid {pid}) does not answer"),
            waited: options.deadline,
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

/// Stops the server in order, if one runs.
pub(super) fn stop(cluster: &Path) -> Result<(), EmbeddedError> {
    let Some(pid) = running_pid(cluster) else { return Ok(()) };
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
struct Postmaster {
    pid: u32,
    port: Option<u16>,
    ready: bool,
}

impl Postmaster {
    fn read(cluster: &Path) -> Option<Self> {
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
fn forget_stranger(cluster: &Path) {
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

/// The port of the last start if it is free, so that connection strings stay; else any free one.
fn free_port(last: u16) -> Result<u16, EmbeddedError> {
    let try_port = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port))?.local_addr();
    let address = try_port(last).or_else(|_| try_port(0)).tried("find a free port on 127.0.0.1")?;
    Ok(address.port())
}

/// Opens the log for appending; one that grew past 10 MB becomes `pg.log.1`.
fn open_log(place: &Place) -> Result<(fs::File, u64), EmbeddedError> {
    let path = place.log();
    let length = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
    if length(&path) > 10_000_000 {
        let _ = fs::rename(&path, path.with_extension("log.1"));
    }
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
    let file = file.tried(format_args!("open {}", path.display()))?;
    account::belongs_like_its_folder(&path)?;
    Ok((file, length(&path)))
}

fn tail_of(place: &Place, from: u64) -> String {
    let mut text = Vec::new();
    let read = fs::File::open(place.log()).and_then(|mut file| {
        file.seek(SeekFrom::Start(from))?;
        file.read_to_end(&mut text)
    });
    match read {
        Ok(_) => last_lines(&String::from_utf8_lossy(&text)),
        Err(error) => format!("(cannot read it: {error})"),
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

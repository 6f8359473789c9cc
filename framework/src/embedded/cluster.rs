//! One cluster: made, and its server started.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    net::{Ipv4Addr, TcpListener},
    os::unix::{fs::OpenOptionsExt, fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::Stdio,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use super::{
    Attempt, EmbeddedError,
    account::{self, Account},
    binaries::Binaries,
    connection::{Connection, write_private},
    error::Tried,
    place::Place,
    postmaster::{self, Postmaster},
    process,
};

/// The major version that made the cluster, or `None` when there is none.
pub(super) fn major(cluster: &Path) -> Option<u32> {
    fs::read_to_string(cluster.join("PG_VERSION")).ok()?.trim().parse().ok()
}

/// Makes the cluster in a folder that appears when it is complete.
pub(super) fn create(place: &Place, binaries: &Binaries, attempt: &Attempt) -> Result<(), EmbeddedError> {
    if let Ok(mut entries) = fs::read_dir(place.cluster())
        && entries.next().is_some()
    {
        // Before anything is written: its password is in the file that this would replace.
        let cluster = place.cluster();
        let found = io::Error::other("there is a cluster whose PG_VERSION cannot be read");
        return Err(found).tried(format_args!("make a cluster in {}: move it away or mend it", cluster.display()));
    }
    (attempt.announce)(&format!("making a PostgreSQL {} cluster in {}", binaries.version, place.home.display()));
    let connection = Connection::with_new_password()?;
    connection.write(place)?;

    let new = place.unfinished("unfinished-cluster-")?;
    let private = fs::set_permissions(&new, fs::Permissions::from_mode(0o700));
    private.tried(format_args!("close the folder {}", new.display()))?;
    let password = place.home.join("pg.password");
    write_private(&password, connection.password.as_bytes())?;
    Account::owns(place.account.as_ref(), &new)?;
    Account::owns(place.account.as_ref(), &password)?;

    let mut initdb = binaries.program("initdb", place.account.as_ref());
    initdb.args(["-U", "postgres", "-A", "scram-sha-256", "-E", "UTF8", "--no-locale", "--no-instructions"]);
    initdb.arg("--pwfile").arg(&password).arg("-D").arg(&new);
    if !attempt.durable {
        initdb.arg("--no-sync");
    }
    let output = process::run(&mut initdb, attempt.deadline, &attempt.given_up);
    let _ = fs::remove_file(&password);
    if !output.as_ref().is_ok_and(|output| output.status.success()) {
        let _ = fs::remove_dir_all(&new);
    }
    let output = output.tried("run initdb")?;
    if !output.status.success() {
        let words = [output.stdout, output.stderr].concat();
        return Err(EmbeddedError::Initdb { output: last_lines(&String::from_utf8_lossy(&words)) });
    }
    fs::rename(&new, place.cluster()).tried(format_args!("move the cluster to {}", place.cluster().display()))
}

/// Starts the server and waits until it takes connections.
pub(super) fn launch(
    place: &Place,
    binaries: &Binaries,
    attempt: &Attempt,
) -> Result<(Connection, u32), EmbeddedError> {
    let saved = Connection::read(place)?;
    let begun = Instant::now();
    let mut port = attempt.port.unwrap_or(saved.port);
    loop {
        if attempt.port.is_none() {
            port = free_port(port)?;
        }
        let mut connection = saved.clone().at(port);
        connection.version = binaries.version.clone();
        connection.binaries = binaries.folder.display().to_string();
        connection.durable = attempt.durable;
        connection.write(place)?;

        let in_time = begun.elapsed() < attempt.deadline;
        match launch_at(port, place, binaries, attempt)? {
            Launched::Ready(pid) => return Ok((connection, pid)),
            // One that an app started and did not live to see.
            Launched::Ended(tail) if in_time && tail.contains(LOCKED) => match postmaster::running(place, attempt)? {
                Some((port, pid)) => {
                    let connection = connection.at(port);
                    connection.write(place)?;
                    return Ok((connection, pid));
                }
                None => thread::sleep(Duration::from_millis(50)),
            },
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

/// What a server says that finds another one in its folder.
const LOCKED: &str = "lock file \"postmaster.pid\"";

/// Whether a start that ended so may go well a moment later. `lc_messages` is C, so these are the server's words.
fn passes(tail: &str) -> bool {
    ["could not create any TCP/IP sockets", "pre-existing shared memory block"]
        .iter()
        .any(|reason| tail.contains(reason))
}

fn launch_at(port: u16, place: &Place, binaries: &Binaries, attempt: &Attempt) -> Result<Launched, EmbeddedError> {
    let cluster = place.cluster();
    postmaster::forget_stranger(&cluster);
    let (log, log_start) = open_log(place)?;
    let mut postgres = binaries.program("postgres", place.account.as_ref());
    postgres.arg("-D").arg(&cluster);
    for (name, value) in settings(port, attempt) {
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
    let mut given_up = false;
    let ready = process::wait_until(Instant::now() + attempt.deadline, || {
        exited = end.try_recv().is_ok();
        given_up = attempt.given_up.is_set();
        exited || given_up || Postmaster::read(&cluster).is_some_and(|it| it.pid == pid && it.ready)
    });
    if given_up {
        if !exited {
            postmaster::stop_process(pid)?;
        }
        attempt.given_up.check().tried("go on with the start of PostgreSQL")?;
    }
    match (exited, ready) {
        (true, _) => Ok(Launched::Ended(tail_of(place, log_start))),
        (false, true) => Ok(Launched::Ready(pid)),
        (false, false) => Err(EmbeddedError::Timeout {
            what: format!("PostgreSQL (pid {pid}) is not ready"),
            waited: attempt.deadline,
            next: format!("see {}; it may be recovering: start again to go on waiting", place.log().display()),
        }),
    }
}

/// The settings of one start. Later ones win, so the user's own come last.
fn settings(port: u16, attempt: &Attempt) -> Vec<(String, String)> {
    let durable = if attempt.durable { "on" } else { "off" };
    let fixed = [
        ("listen_addresses", "127.0.0.1"),
        ("port", &port.to_string()),
        ("unix_socket_directories", ""),
        ("max_connections", "200"),
        ("max_prepared_transactions", "10"),
        ("shared_buffers", "96MB"),
        ("fsync", durable),
        ("full_page_writes", durable),
        ("synchronous_commit", "on"),
        ("logging_collector", "off"),
        // An expected error (a refused append) is a line in the log, not the whole statement with it.
        ("log_min_error_statement", "fatal"),
        ("lc_messages", "C"),
        ("timezone", "UTC"),
        ("log_timezone", "UTC"),
    ];
    let fixed = fixed.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
    fixed.chain(attempt.settings.iter().cloned()).collect()
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

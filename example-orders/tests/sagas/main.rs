//! Sagas, the gateway and what looks after them, as a person types it: what is printed, what it changes, and the exit codes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod fulfil;
mod gateway;
mod operate;
mod returns;
mod transfer;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use annals::testing::{TestDatabase, database};
use serde_json::Value;

/// A database and a folder of its own to work in.
struct Shop {
    database: TestDatabase,
    folder: Folder,
}

impl Shop {
    async fn open() -> Self {
        Self { database: database().await, folder: Folder::new() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_example-orders"));
        command.args(arguments).env("DATABASE_URL", self.database.url()).current_dir(&self.folder.0);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What `arguments` print, which end with exit code `code`.
    fn prints(&self, arguments: &[&str], code: i32) -> String {
        let output = self.run(arguments);
        let (said, errors) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}{errors}");
        said
    }

    /// The objects that `arguments` print, one a line.
    fn objects(&self, arguments: &[&str], code: i32) -> Vec<Value> {
        self.prints(arguments, code).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The one object that `arguments` print.
    fn object(&self, arguments: &[&str], code: i32) -> Value {
        let mut objects = self.objects(arguments, code);
        assert_eq!(objects.len(), 1, "{objects:?}");
        objects.remove(0)
    }

    /// The one error that `arguments` are refused with.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}{errors}", text(&output.stdout));
        assert!(errors.starts_with("error: ") && errors.lines().count() == 1, "{arguments:?}: {errors}");
        errors
    }

    /// The folder of the books of the gateway that `fulfil` started.
    fn books(&self) -> PathBuf {
        fs::read_dir(self.folder.0.join(".data-gateway")).unwrap().next().unwrap().unwrap().path()
    }

    /// Asks with `arguments` until an object of the answer is as it should be.
    fn wait_for(&self, arguments: &[&str], what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let objects = self.objects(arguments, 0);
            if let Some(object) = objects.iter().find(|object| is_so(object)) {
                return object.clone();
            }
            assert!(Instant::now() < deadline, "not in a minute: {what}: {objects:?}");
        }
    }

    /// A process that runs sagas, with the gateway at `url`.
    fn works(&self, url: &str) -> Running {
        Running::start(self.command(&["work", "--gateway", url])).0
    }
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("sagas-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A process that goes with the test.
struct Running(Child);

impl Running {
    /// Starts it, and waits for its first line.
    fn start(mut command: Command) -> (Self, String) {
        let mut process = command.stderr(Stdio::inherit()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        (Self(process), line.trim().to_owned())
    }

    fn gateway(arguments: &[&str], books: &std::path::Path) -> (Self, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_example-orders"));
        command.args(["gateway", "--port", "0", "--data"]).arg(books).args(arguments).stdout(Stdio::piped());
        let (running, line) = Self::start(command);
        let url = line.strip_prefix("gateway: ").unwrap().to_owned();
        (running, url)
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

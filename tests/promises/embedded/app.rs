//! This test binary as another process that uses the framework.

use super::*;

/// What the apps of the tests above do; not a test.
#[test]
#[ignore = "not a test: the process that the tests of `embedded` start, each with a task of its own"]
fn app() {
    let Ok(mode) = env::var("APP") else { return };
    let folder = PathBuf::from(env::var_os("APP_FOLDER").unwrap());
    tokio::runtime::Runtime::new().unwrap().block_on(run_app(&mode, folder));
}

async fn run_app(mode: &str, folder: PathBuf) {
    // A handler of its own: what was started in the background inherits that Ctrl-C is ignored.
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).unwrap();
    tokio::spawn(async move {
        interrupt.recv().await;
        std::process::exit(130);
    });
    let options = Options { data_dir: folder, fetch: Fetch::Never, ..Options::default() };
    match mode {
        "server" => {
            let server = embedded::start(options).await.unwrap();
            say(&format!("{:?} {} {}", server.how(), server.pid(), server.url()));
            if read_command() == "stop" {
                say(&format!("{:?}", server.stop().await.unwrap()));
            }
        }
        "fetch" => {
            let error = embedded::start(Options { fetch: Fetch::Only, ..options }).await.unwrap_err();
            say(&error.to_string());
        }
        "tests-elsewhere" => {
            let database = testing::database().await;
            say(database.url());
            read_command();
        }
        "url" => {
            let database = embedded::database(options).await.unwrap();
            say(&format!("{} {}", database.url(), database.origin()));
        }
        // An app that follows until it is ended, one way or the other.
        "follow" => {
            let app = crate::follow::process(&env::var("APP_URL").unwrap(), &env::var("APP_NAME").unwrap()).await;
            say("follows");
            if tokio::task::spawn_blocking(read_command).await.unwrap() == "stop" {
                app.shutdown().await;
            }
        }
        // The same with sagas.
        "sagas" => {
            let app = crate::saga::process(&env::var("APP_URL").unwrap(), &env::var("APP_NAME").unwrap()).await;
            say("follows");
            if tokio::task::spawn_blocking(read_command).await.unwrap() == "stop" {
                app.shutdown().await;
            }
        }
        _ => {
            let database = testing::database().await;
            let pid = fs::read_to_string(options.data_dir.join("annals-testing/pg/postmaster.pid")).unwrap();
            say(&format!("? {} {}", pid.lines().next().unwrap(), database.url()));
            let own = if env::var_os("ONLY_DATABASE").is_none() { Some(testing::server().await) } else { None };
            say(&own.as_ref().map_or(0, |own| own.pid()).to_string());
            match read_command().as_str() {
                "exit" => std::process::exit(0),
                "abort" => std::process::abort(),
                _ => panic!("as a test does"),
            }
        }
    }
}

fn say(line: &str) {
    println!("app: {line}");
}

fn read_command() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line.trim().to_owned()
}

/// This test binary as another process that uses the framework.
pub(crate) struct App {
    pub(crate) process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl App {
    pub(crate) fn start(mode: &str, folder: &Folder, prepare: impl FnOnce(&mut Command)) -> Self {
        Self::start_program(&env::current_exe().unwrap(), mode, folder, prepare)
    }

    pub(super) fn start_program(
        program: &Path,
        mode: &str,
        folder: &Folder,
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        let tmp = folder.path().join("tmp");
        let mut command = Command::new(program);
        command.args(["--exact", "embedded::app::app", "--ignored", "--nocapture"]);
        command
            .env("APP", mode)
            .env("APP_FOLDER", folder.path())
            .env_remove("DATABASE_URL")
            .env_remove("RUST_BACKTRACE");
        if mode == "tests" {
            fs::create_dir_all(&tmp).unwrap();
            command.env("CARGO_TARGET_DIR", folder.path()).env("TMPDIR", tmp);
        }
        prepare(&mut command);
        command.current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().unwrap();
        let input = process.stdin.take();
        let output = BufReader::new(process.stdout.take().unwrap());
        Self { process, input, output }
    }

    /// The next line that the app says.
    pub(crate) fn line(&mut self) -> String {
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "the app said no more after: {seen}");
            // libtest begins a line of its own and does not end it.
            if let Some((_, line)) = line.split_once("app: ") {
                return line.trim().to_owned();
            }
            seen += &line;
        }
    }

    /// How the app came by its server, the server's process, the connection string.
    pub(super) fn server(&mut self) -> (String, u32, String) {
        let line = self.line();
        let words: Vec<_> = line.split(' ').collect();
        (words[0].into(), words[1].parse().unwrap(), words[2].into())
    }

    pub(super) fn tell(&mut self, command: &str) -> String {
        writeln!(self.input.as_mut().unwrap(), "{command}").unwrap();
        self.line()
    }

    pub(super) fn end(&mut self, command: &str) {
        writeln!(self.input.as_mut().unwrap(), "{command}").unwrap();
        self.process.wait().unwrap();
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

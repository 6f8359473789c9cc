//! Processes of this program that this one starts: they end with it, whatever ends it.

use std::{env, path::Path, process::Stdio, time::Duration};

use annals::BoxError;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{ChildStdout, Command},
    time::timeout,
};

/// How long one may take until it is ready, and to end in good order.
const STARTING: Duration = Duration::from_secs(60);
const ENDING: Duration = Duration::from_secs(10);

/// A child that is ready.
pub(crate) struct Child {
    process: tokio::process::Child,
    /// Kept open: nobody listens, and it must be able to speak.
    _output: Lines<BufReader<ChildStdout>>,
}

impl Child {
    /// A gateway with its books in `folder`. Returns where it is, too.
    ///
    /// # Errors
    /// It does not start; it has said why.
    pub(crate) async fn gateway(folder: &Path) -> Result<(Self, String), BoxError> {
        let mut command = command()?;
        command.args(["gateway", "--port", "0", "--attached", "--data"]).arg(folder);
        let (child, line) = Self::start(command, "the gateway").await?;
        let url = line.strip_prefix("gateway: ").ok_or_else(|| format!("the gateway said {line:?}"))?;
        Ok((child, url.to_owned()))
    }

    /// A process that runs the sagas, with the gateway at `url`.
    ///
    /// # Errors
    /// It does not start; it has said why.
    pub(crate) async fn worker(data_dir: &Path, url: &str) -> Result<Self, BoxError> {
        let mut command = command()?;
        command.arg("--data-dir").arg(data_dir).args(["work", "--attached", "--gateway", url]);
        Ok(Self::start(command, "a process that runs sagas").await?.0)
    }

    async fn start(mut command: Command, what: &str) -> Result<(Self, String), BoxError> {
        let mut process = command.spawn()?;
        let output = process.stdout.take().ok_or("a child has no standard output")?;
        let mut output = BufReader::new(output).lines();
        match timeout(STARTING, output.next_line()).await {
            Ok(Ok(Some(line))) => Ok((Self { process, _output: output }, line)),
            Ok(_) => Err(format!("{what} ended before it was ready").into()),
            Err(_) => Err(format!("{what} was not ready within {} s", STARTING.as_secs()).into()),
        }
    }

    /// Ends it as SIGKILL does.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) async fn kill(&mut self) -> Result<(), BoxError> {
        Ok(self.process.kill().await?)
    }

    /// Lets it end in good order; not for long.
    pub(crate) async fn end(mut self) {
        drop(self.process.stdin.take());
        // One that does not end is killed when it is dropped.
        let _ = timeout(ENDING, self.process.wait()).await;
    }
}

fn command() -> Result<Command, BoxError> {
    let mut command = Command::new(env::current_exe()?);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    Ok(command)
}

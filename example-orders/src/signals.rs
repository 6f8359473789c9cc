//! Ctrl-C and SIGTERM: the first asks for an end in good order, the second ends at once.

use std::{io, thread};

use annals::BoxError;
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

use crate::say::note;

/// What the process answers when a second signal ended it, or the first a check that has come to no verdict.
pub(crate) const INTERRUPTED: u8 = 130;

/// A token that either signal cancels. Another signal ends the process, whatever is under way.
///
/// # Errors
/// The system refuses to hand over its signals.
pub(crate) fn stop() -> Result<CancellationToken, BoxError> {
    // A thread of its own still hears the second signal when the program's tasks hang or are ended already.
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _entered = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let stop = CancellationToken::new();
    let token = stop.clone();
    thread::spawn(move || {
        runtime.block_on(async {
            let mut next = async || {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            };
            next().await;
            note("stopping in good order; a second Ctrl-C ends at once");
            token.cancel();
            next().await;
            note("ended at once: what was stored is kept, and the next start finds a PostgreSQL that still runs");
            std::process::exit(INTERRUPTED.into());
        });
    });
    Ok(stop)
}

/// Cancels `stop` when standard input ends: whoever holds its other end is gone, or wants an end.
pub(crate) fn stop_with_input(stop: &CancellationToken) {
    let stop = stop.clone();
    thread::spawn(move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        stop.cancel();
    });
}

/// Lets `work` end, or drops it and answers with none when `stop` asks for an end.
///
/// # Errors
/// That of `work`.
pub(crate) async fn until<T>(
    stop: &CancellationToken,
    work: impl Future<Output = Result<T, BoxError>>,
) -> Result<Option<T>, BoxError> {
    tokio::select! {
        biased;
        outcome = work => outcome.map(Some),
        () = stop.cancelled() => {
            note("stopped");
            Ok(None)
        }
    }
}

//! Ctrl-C and SIGTERM: a request to end in good order.

use annals::BoxError;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that either signal cancels.
///
/// # Errors
/// The system refuses to hand over its signals.
pub(crate) fn stop() -> Result<CancellationToken, BoxError> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        token.cancel();
    });
    Ok(stop)
}

/// Lets `work` end, or leaves it where it is when `stop` asks for an end.
///
/// # Errors
/// That of `work`.
pub(crate) async fn until(
    stop: &CancellationToken,
    work: impl Future<Output = Result<(), BoxError>>,
) -> Result<(), BoxError> {
    tokio::select! {
        biased;
        outcome = work => outcome,
        () = stop.cancelled() => {
            eprintln!("stopped");
            Ok(())
        }
    }
}

//! One past order, recorded whatever becomes of the server meanwhile.

use std::time::Duration;

use annals::{App, ExecuteError, StoreError};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{in_flight::Recorded, rejection::Fault};
use crate::order::{Order, OrderCommand, OrderId, Purchase};

/// How long an order waits for a server that is away; `--help` says so.
const PATIENCE: Duration = Duration::from_secs(60);

const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Records one order. While the server is away it tries again: the aggregate sees to it that an order is recorded once.
///
/// # Errors
/// What the store answered last, after [`PATIENCE`] or once `stop` asks for an end.
pub(super) async fn record(
    app: &App,
    id: OrderId,
    purchase: Purchase,
    stop: &CancellationToken,
) -> Result<Recorded, StoreError> {
    let give_up_at = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(50);
    let mut perhaps_written = false;
    loop {
        let error = match app.execute::<Order>(id, OrderCommand::RecordPast(purchase.clone())).await {
            Ok(receipt) if receipt.appended > 0 || perhaps_written => return Ok(Recorded::Now),
            Ok(_) => return Ok(Recorded::Before),
            Err(ExecuteError::Rejected(error)) => {
                return Ok(Recorded::Refused(Fault::new("order_id", error.to_string())));
            }
            Err(ExecuteError::Store(StoreError::Invalid(error))) => {
                return Ok(Recorded::Refused(Fault::new("row", error.to_string())));
            }
            Err(ExecuteError::Store(error)) => error,
        };
        let unknown = matches!(error, StoreError::UnknownOutcome { .. });
        perhaps_written |= unknown;
        if !(error.is_retryable() || unknown) || stop.is_cancelled() || Instant::now() > give_up_at {
            return Err(error);
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

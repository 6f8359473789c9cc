//! Wake-ups between processes: a hint without data that there is something new. Losing one costs a poll interval.
//!
//! Sent behind the commit and at a limited rate, never inside an append: `NOTIFY` takes a lock across the whole server
//! at commit.

use std::{sync::Arc, time::Duration};

use sqlx::postgres::PgListener;
use tokio::{sync::Notify, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::store::{Annals, pool, within};

/// The shortest time between two wake-ups of one process.
const INTERVAL: Duration = Duration::from_millis(20);

fn channel(store: &Annals) -> String {
    format!("annals:{}", store.name())
}

/// Rings `woken` for every wake-up, and after every lost connection.
pub(super) async fn listen(store: Annals, woken: Arc<Notify>, stop: CancellationToken) {
    // A pool of its own: a listener keeps its connection, and would take it from the followers.
    let inner = &store.inner;
    let own = pool(&inner.config, &inner.sql, 1).connect_lazy_with(inner.options.clone());
    let listening = async {
        loop {
            if let Ok(mut listener) = PgListener::connect_with(&own).await
                && listener.listen(&channel(&store)).await.is_ok()
            {
                woken.notify_one();
                // `None` means that the connection was lost, and wake-ups with it; by now there is another. Look at once.
                while let Ok(_hint) = listener.try_recv().await {
                    woken.notify_one();
                }
            }
            sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        () = listening => {}
        () = stop.cancelled() => {}
    }
}

/// Tells the other processes of this one's appends.
pub(crate) async fn send(store: Annals, stop: CancellationToken) {
    let mut appended = store.inner.appender.appended.subscribe();
    let sending = async {
        while appended.changed().await.is_ok() {
            let hint = sqlx::query(store.inner.sql.notify_appended.clone()).bind(channel(&store));
            let sent = within(store.config().read_deadline, "send a wake-up", hint.execute(&store.inner.reads)).await;
            if !matches!(sent, Ok(Ok(_))) {
                tracing::debug!(?sent, "a wake-up could not be sent");
            }
            sleep(INTERVAL).await;
        }
    };
    tokio::select! {
        () = sending => {}
        () = stop.cancelled() => {}
    }
}

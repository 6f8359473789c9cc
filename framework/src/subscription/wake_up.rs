//! Wake-ups between processes: a hint without data that there is something new. Losing one costs a poll interval.
//!
//! Sent behind the commit and at a limited rate, never inside an append: `NOTIFY` takes a lock across the whole server
//! at commit.

use std::{sync::Arc, time::Duration};

use sqlx::postgres::PgListener;
use tokio::{sync::Notify, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::store::{Annals, pool};

/// The shortest time between two wake-ups of one process.
const INTERVAL: Duration = Duration::from_millis(20);

fn channel(store: &Annals) -> String {
    format!("annals:{}", store.name())
}

/// The channel on which processes tell each other that what they run has changed: owners, states, requests.
pub(super) fn control(store: &Annals) -> String {
    format!("annals:{}:control", store.name())
}

/// Rings `woken` for every wake-up, `changed` for every change of what is to run, and both after a lost connection.
pub(super) async fn listen(store: Annals, woken: Arc<Notify>, changed: Arc<Notify>, stop: CancellationToken) {
    // A pool of its own: a listener keeps its connection, and would take it from the followers.
    let inner = &store.inner;
    let own = pool(&inner.config, &inner.sql, 1).connect_lazy_with(inner.options.clone());
    let listening = async {
        loop {
            if let Ok(mut listener) = PgListener::connect_with(&own).await
                && listener.listen_all([&*channel(&store), &*control(&store)]).await.is_ok()
            {
                woken.notify_one();
                // `None` means that the connection was lost, and wake-ups with it; by now there is another. Look at once.
                while let Ok(hint) = listener.try_recv().await {
                    if hint.as_ref().is_none_or(|hint| hint.channel() == control(&store)) {
                        changed.notify_one();
                    }
                    if hint.is_none_or(|hint| hint.channel() == channel(&store)) {
                        woken.notify_one();
                    }
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
            tell(&store, &channel(&store)).await;
            sleep(INTERVAL).await;
        }
    };
    tokio::select! {
        () = sending => {}
        () = stop.cancelled() => {}
    }
}

/// Sends one hint. Losing it costs the poll interval.
pub(super) async fn tell(store: &Annals, channel: &str) {
    let hint = store.inner.sql.notify_appended.query().bind(channel);
    if let Err(error) = store.inner.reads.execute("send a wake-up", hint).await {
        tracing::debug!(%error, "a wake-up could not be sent");
    }
}

//! The tail: one reader of the log for all followers of the process.

use std::{sync::Arc, time::Duration};

use sqlx::PgConnection;
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{recent::Recent, wake_up};
use crate::{
    Position,
    error::StoreError,
    store::{ReadLog, Store, connect, horizon, within},
};

/// How far followers may read. `epoch` counts the connections of the tail: after a new one, what a follower remembers
/// above its committed checkpoint is void, for a crash may have taken the sequence back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Frontier {
    pub(crate) epoch: u64,
    pub(crate) safe: Position,
}

/// The reading end of the tail, for one process.
pub(crate) struct Tail {
    pub(crate) frontier: watch::Receiver<Frontier>,
    pub(crate) recent: Arc<Recent>,
}

impl Tail {
    /// Starts reading, until `stop`.
    pub(crate) fn start(store: Store, stop: CancellationToken) -> Self {
        let (sender, frontier) = watch::channel(Frontier::default());
        let recent = Arc::new(Recent::default());
        let woken = Arc::new(Notify::new());
        tokio::spawn(wake_up::listen(store.clone(), woken.clone(), stop.clone()));
        tokio::spawn(wake_up::send(store.clone(), stop.clone()));
        let reader = Reader { store, recent: recent.clone(), frontier: sender, woken };
        tokio::spawn(async move {
            tokio::select! {
                () = reader.run() => {}
                () = stop.cancelled() => {}
            }
        });
        Self { frontier, recent }
    }
}

struct Reader {
    store: Store,
    recent: Arc<Recent>,
    frontier: watch::Sender<Frontier>,
    woken: Arc<Notify>,
}

impl Reader {
    async fn run(self) {
        let mut pause = Duration::from_millis(50);
        loop {
            let error = match self.follow().await {
                Ok(never) => never,
                Err(error) => error,
            };
            tracing::warn!(%error, "the tail of the log lost its connection; followers start again from their checkpoints");
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    /// Reads on one connection until it fails.
    async fn follow(&self) -> Result<StoreError, StoreError> {
        let inner = &self.store.inner;
        let mut conn = connect(&inner.options, inner.config.connect_deadline).await?;
        let mut appended = inner.appender.appended.subscribe();
        let mut read = Position::START;
        let mut first = true;
        let mut held = Duration::from_millis(1);
        loop {
            let asking = horizon(&mut conn, &inner.sql);
            let horizon = within(inner.config.read_deadline, "read the safe position", asking).await??;
            if first {
                first = false;
                read = horizon.safe;
                self.recent.restart(read);
                self.frontier.send_modify(|frontier| *frontier = Frontier { epoch: frontier.epoch + 1, safe: read });
            }
            let safe = horizon.safe.max(read);
            while read < safe {
                read = self.read_page(&mut conn, read, safe).await?;
                self.frontier.send_modify(|frontier| frontier.safe = read);
            }
            // Somebody is in flight: look again soon, and less often the longer it takes.
            held = if horizon.safe < horizon.drawn {
                (held * 2).min(inner.config.poll_interval)
            } else {
                Duration::from_millis(1)
            };
            let interval = if horizon.safe < horizon.drawn { held } else { inner.config.poll_interval };
            let _ = timeout(interval, async {
                tokio::select! {
                    _ = appended.changed() => {}
                    () = self.woken.notified() => {}
                }
            })
            .await;
        }
    }

    /// Takes one page into memory. Returns how far the log has now been read.
    async fn read_page(
        &self,
        conn: &mut PgConnection,
        after: Position,
        safe: Position,
    ) -> Result<Position, StoreError> {
        let inner = &self.store.inner;
        let read = ReadLog { after, ..ReadLog::default() };
        let reading = inner.read_final_on(conn, &read, safe, 2_000);
        let page = within(inner.config.read_deadline, "read the log", reading).await?;
        let page = page.map_err(StoreError::on("read the log"))?;
        self.recent.push(page.events);
        Ok(page.next.unwrap_or(safe))
    }
}

//! How a runner tells of failures: in this process, and in the store for everybody else.

use std::time::Duration;

use chrono::Utc;
use tokio::time::sleep;

use super::{Place, Runner};
use crate::{
    Position,
    subscription::{failure::Failure, status::FollowerState},
};

/// The longest pause before a failing database is tried again.
const LONGEST_PAUSE_OF_DATABASE: Duration = Duration::from_secs(2);

impl Runner {
    /// Shows a failure of several events at once, while it is found out which of them it is.
    pub(super) fn show_searching(&self, events: usize, error: &str) {
        tracing::warn!(follower = self.unit.name, events, %error, "a batch failed; looking for the event");
    }

    /// Shows that not all of a batch could begin in its time: who is called is slow.
    pub(super) fn show_slow(&self, events: usize) {
        tracing::info!(follower = self.unit.name, events, "a batch takes long: fewer events are taken at once");
    }

    pub(super) async fn wait_after(&self, failure: &Failure, attempts: u32) {
        let pause = match failure {
            Failure::Passing(_) => Duration::from_millis(100 << attempts.min(9)).min(LONGEST_PAUSE_OF_DATABASE),
            _ => self.setting.policy.delay(attempts).unwrap_or_default(),
        };
        let (name, error, position) = (self.unit.name, failure.text(), failure.position());
        tracing::error!(follower = name, attempts, %error, ?position, "a follower failed and waits");
        self.show(|shown| {
            shown.state = FollowerState::Retrying;
            shown.attempts = attempts;
            shown.last_error = Some(error.to_owned());
            shown.failed_position = position;
            shown.next_attempt_at = Some(Utc::now() + pause);
        });
        let pausing = sleep(pause);
        let recording = self.record(error, position, attempts, pause);
        tokio::select! {
            _ = async { tokio::join!(pausing, recording) } => {}
            () = self.setting.stop.cancelled() => {}
        }
    }

    /// Lets the store show a failure to whoever is not in this process.
    pub(super) async fn record(&self, error: &str, position: Option<Position>, attempts: u32, pause: Duration) {
        let store = &self.setting.store;
        let recording = store
            .inner
            .sql
            .record_failure
            .query()
            .bind(self.unit.name)
            .bind(self.unit.generation)
            .bind(self.unit.partition)
            .bind(self.setting.owner)
            .bind(attempts as i32)
            .bind(error)
            .bind(position.map(Position::get))
            .bind(pause.as_secs_f64());
        if let Err(error) = store.inner.followers.execute("record a failure", recording).await {
            tracing::debug!(%error, "a follower's failure could not be recorded");
        }
    }

    /// Halts the follower, in the store: somebody has to look.
    pub(super) async fn halt(&self, reason: &str) {
        tracing::error!(follower = self.unit.name, reason, "a follower halts");
        let store = &self.setting.store;
        loop {
            let halting = store
                .inner
                .sql
                .halt_generation
                .query()
                .bind(self.unit.name)
                .bind(self.unit.generation)
                .bind(reason)
                .bind(self.unit.partition)
                .bind(self.setting.owner);
            if store.inner.followers.execute("halt a follower", halting).await.is_ok() {
                break;
            }
            tokio::select! {
                () = sleep(LONGEST_PAUSE_OF_DATABASE) => {}
                () = self.setting.stop.cancelled() => return,
            }
        }
        self.show(|shown| {
            (shown.state, shown.last_error) = (FollowerState::Halted, Some(reason.to_owned()));
        });
    }

    pub(super) async fn show_recovered(&self, place: Option<&Place>) {
        self.show(|shown| {
            (shown.attempts, shown.last_error, shown.failed_position) = (0, None, None);
            (shown.state, shown.next_attempt_at) = (FollowerState::Running, None);
        });
        if let Some(place) = place {
            self.move_checkpoint(place.committed, place.committed.position).await;
        }
    }
}

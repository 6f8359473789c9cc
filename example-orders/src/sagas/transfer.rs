//! Money from one account to another.

use annals::{Id, Recorded, Saga, Steps};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::account::{Account, AccountCommand, AccountEvent};

/// Debits one account, then credits the other; puts the money back when that refuses it.
///
/// Each half commits with its step. Between the two the money is on its way, and the log says so.
pub(crate) struct Transfer {
    /// Whether the process ends between the two halves, as if it were killed.
    pub(crate) crash: bool,
}

/// What is moved.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ToTransfer {
    pub(crate) transfer: Uuid,
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) cents: i64,
}

impl Saga for Transfer {
    const NAME: &'static str = "transfer";
    type Event = AccountEvent;
    type Input = ToTransfer;

    fn start(event: &Recorded<AccountEvent>) -> Option<(Id, ToTransfer)> {
        match &event.event {
            AccountEvent::TransferRequested { transfer, to, cents } => {
                let from = event.stream.id().to_owned();
                Some((transfer.into(), ToTransfer { transfer: *transfer, from, to: to.clone(), cents: *cents }))
            }
            _ => None,
        }
    }

    fn steps(steps: Steps<Self>) -> Steps<Self> {
        steps
            .command::<Account>("debit", |cx| {
                let ToTransfer { transfer, from, cents, .. } = &*cx.input;
                Ok((from.into(), AccountCommand::Debit { transfer: *transfer, cents: *cents }))
            })
            .undo_command::<Account>(|cx, ()| {
                let ToTransfer { transfer, from, cents, .. } = &*cx.input;
                Ok((from.into(), AccountCommand::ReverseDebit { transfer: *transfer, cents: *cents }))
            })
            .command::<Account>("credit", |cx| {
                if cx.saga.crash {
                    // No good order: nothing is written, told or closed, as with a SIGKILL.
                    std::process::abort();
                }
                let ToTransfer { transfer, to, cents, .. } = &*cx.input;
                Ok((to.into(), AccountCommand::Credit { transfer: *transfer, cents: *cents }))
            })
    }
}

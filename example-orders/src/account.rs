//! An account: money that comes, goes, and is never below nothing.

use annals::{Aggregate, Context, Event};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The most that an account holds, in cents: ten billion dollars.
pub(crate) const MAX_CENTS: i64 = 1_000_000_000_000;

/// An account. The id of its stream is its holder's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Account {
    /// What is on it; none before it is opened.
    pub(crate) cents: Option<i64>,
}

/// What can be asked of an account.
#[derive(Debug, Clone, Serialize)]
pub(crate) enum AccountCommand {
    /// Opens it, with money on it.
    Open { cents: i64 },
    /// Begins a transfer to the account `to`. The money moves later.
    RequestTransfer { transfer: Uuid, to: String, cents: i64 },
    /// Takes money off, for a transfer.
    Debit { transfer: Uuid, cents: i64 },
    /// Puts money on, from a transfer.
    Credit { transfer: Uuid, cents: i64 },
    /// Puts back what a transfer took that did not arrive.
    ReverseDebit { transfer: Uuid, cents: i64 },
}

/// What happens to an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum AccountEvent {
    /// It is there from now on.
    AccountOpened { cents: i64 },
    /// Its holder wants money moved.
    TransferRequested { transfer: Uuid, to: String, cents: i64 },
    /// Money left.
    AccountDebited { transfer: Uuid, cents: i64 },
    /// Money arrived.
    AccountCredited { transfer: Uuid, cents: i64 },
    /// Money that had left is back.
    DebitReversed { transfer: Uuid, cents: i64 },
}

impl Event for AccountEvent {}

/// Why an account refuses a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AccountError {
    /// There is no such account.
    #[error("there is no such account")]
    NotOpen,
    /// The name is taken.
    #[error("there is such an account already")]
    OpenedBefore,
    /// Nothing is taken then.
    #[error("{wanted} cents are wanted, and {there} are on the account")]
    NotEnough { wanted: i64, there: i64 },
    /// Nothing, or more than an account holds.
    #[error("an amount is at least 1 cent, and leaves an account with at most ten billion dollars")]
    BadAmount,
}

impl Aggregate for Account {
    const TYPE: &'static str = "account";
    type Command = AccountCommand;
    type Event = AccountEvent;
    type Error = AccountError;

    fn handle(&self, command: &AccountCommand, _: &Context) -> Result<Vec<AccountEvent>, AccountError> {
        use AccountCommand::*;
        use AccountEvent::*;
        let event = match (self.cents, command.clone()) {
            (None, Open { cents }) if (0..=MAX_CENTS).contains(&cents) => AccountOpened { cents },
            (None, Open { .. }) => return Err(AccountError::BadAmount),
            (Some(_), Open { .. }) => return Err(AccountError::OpenedBefore),
            (None, _) => return Err(AccountError::NotOpen),
            (_, RequestTransfer { cents, .. } | Debit { cents, .. }) if cents < 1 => {
                return Err(AccountError::BadAmount);
            }
            (Some(there), Credit { cents, .. } | ReverseDebit { cents, .. })
                if cents < 1 || cents > MAX_CENTS - there =>
            {
                return Err(AccountError::BadAmount);
            }
            (Some(_), RequestTransfer { transfer, to, cents }) => TransferRequested { transfer, to, cents },
            (Some(there), Debit { cents, .. }) if cents > there => {
                return Err(AccountError::NotEnough { wanted: cents, there });
            }
            (Some(_), Debit { transfer, cents }) => AccountDebited { transfer, cents },
            (Some(_), Credit { transfer, cents }) => AccountCredited { transfer, cents },
            (Some(_), ReverseDebit { transfer, cents }) => DebitReversed { transfer, cents },
        };
        Ok(vec![event])
    }

    fn apply(&mut self, event: &AccountEvent) {
        let there = self.cents.unwrap_or_default();
        self.cents = Some(match event {
            AccountEvent::AccountOpened { cents } => *cents,
            AccountEvent::TransferRequested { .. } => there,
            AccountEvent::AccountDebited { cents, .. } => there - cents,
            AccountEvent::AccountCredited { cents, .. } | AccountEvent::DebitReversed { cents, .. } => there + cents,
        });
    }
}

#[cfg(test)]
mod tests {
    use annals::testing::given;

    use super::{AccountCommand::*, AccountEvent::*, *};

    const T: Uuid = Uuid::nil();

    fn opened() -> AccountEvent {
        AccountOpened { cents: 100 }
    }

    #[test]
    fn no_more_is_taken_than_is_there() {
        let debited = AccountDebited { transfer: T, cents: 100 };
        given::<Account>([opened()]).when(Debit { transfer: T, cents: 100 }).then([debited.clone()]);
        given::<Account>([opened(), debited])
            .when(Debit { transfer: T, cents: 1 })
            .then_rejected(AccountError::NotEnough { wanted: 1, there: 0 });
        given::<Account>([opened()]).when(Debit { transfer: T, cents: 0 }).then_rejected(AccountError::BadAmount);
    }

    #[test]
    fn an_account_is_opened_once_and_before_all_else() {
        given::<Account>([]).when(Open { cents: 100 }).then([opened()]);
        given::<Account>([opened()]).when(Open { cents: 100 }).then_rejected(AccountError::OpenedBefore);
        given::<Account>([]).when(Credit { transfer: T, cents: 1 }).then_rejected(AccountError::NotOpen);
        given::<Account>([opened()])
            .when(Credit { transfer: T, cents: MAX_CENTS })
            .then_rejected(AccountError::BadAmount);
    }
}

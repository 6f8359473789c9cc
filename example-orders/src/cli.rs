//! What can be typed.

mod sagas;

use std::{path::PathBuf, time::Duration};

use annals::{By, DeadLetters, Position};
use clap::{Args, Parser, Subcommand};

pub(crate) use sagas::{BreakerCommand, Instance, SagaCommand};

use crate::{
    gateway::{self, Switches},
    login,
    shop::Role,
};

/// Where the private Postgres is when nobody says where.
pub(crate) const DATA_DIR: &str = ".data";

/// An order service on Annals. Without a command it gives a tour.
#[derive(Debug, Parser)]
#[command(name = "example-orders", version)]
pub(crate) struct Cli {
    /// The folder of the private Postgres; not used when DATABASE_URL is set.
    #[arg(long, global = true, value_name = "FOLDER", default_value = DATA_DIR)]
    pub(crate) data_dir: PathBuf,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Brings over the orders of an old system. Exit code 3 when something was rejected.
    ///
    /// A server that is away is waited for, about a minute. However an import ends, the same command goes on with it: what
    /// is there already is not stored twice. Ctrl-C ends it in good order with exit code 0, before the file's end.
    Import {
        /// A CSV file, gzipped or not.
        file: PathBuf,
        /// Ends with one line of JSON instead of a text.
        #[arg(long)]
        json: bool,
        /// Writes every rejection to this file, one a line. It must not be there yet.
        #[arg(long, value_name = "FILE")]
        rejections: Option<PathBuf>,
    },
    /// Shows what the read models say, once they have caught up.
    Report {
        /// One line of JSON instead of tables.
        #[arg(long)]
        json: bool,
    },
    /// Looks after the read models: how far they are, pause and resume, rebuild, verify.
    ///
    /// Works beside other processes on the same data folder, which go on with what they run; alone, it runs the read models
    /// itself for as long as it takes. `list` runs nothing. What is parked of them is looked after by `dead-letters`. Exit code
    /// 130 when it was stopped before its end, but for `list`.
    #[command(subcommand)]
    Projections(Projections),
    /// Looks after parked events: those that a read model, a saga or a reactor could not handle, and those that wait behind them.
    ///
    /// What sagas and reactors have parked is tried by whoever runs them: `work`. `plant-poison` makes some to try this with. Exit
    /// code 130 when a retry or a discard was stopped before its end.
    #[command(subcommand)]
    DeadLetters(Letters),
    /// Checks this build against the log.
    #[command(subcommand)]
    Replay(Replay),
    /// Places orders all the time, to see everything else happen beside them: rebuilds, a process that dies.
    ///
    /// Every five seconds it says how long orders took to be answered, and to be visible in customer_spend. It runs the read
    /// models, too, together with whoever else does. While customer_spend is paused or halted, orders are only placed.
    Trade {
        /// Orders a second, 0.1 to 10,000.
        #[arg(long, value_name = "N", default_value_t = 200.0, value_parser = rate)]
        rate: f64,
        /// For how long.
        #[arg(long, value_name = "N", default_value_t = 60)]
        seconds: u64,
        /// Lines of JSON instead of a text.
        #[arg(long)]
        json: bool,
    },
    /// Appends an event that no read model can read, and a good one behind it, to see what becomes of them.
    ///
    /// The stream is an order of its own. Every read model parks both events and goes on with all other orders; one that is
    /// paused or halted does once it is resumed. What is discarded then is left out: the good event behind it takes effect, and
    /// the order is in the read models.
    PlantPoison,
    /// Looks after sagas: what runs, what is stuck, and what is done about it.
    ///
    /// It works beside the processes that run them, and runs none itself: `work` does.
    #[command(subcommand)]
    Sagas(SagaCommand),
    /// Looks after the circuit breakers of processes that run sagas or reactors: whom they leave alone because it fails.
    #[command(subcommand)]
    Breakers(BreakerCommand),
    /// Moves money from one account to another, and shows how. An account that is new begins with $1,000.00.
    ///
    /// What was begun before is finished first; without arguments that is all. Exit code 1 when the money did not arrive.
    Transfer {
        /// Whose money it is.
        #[arg(requires = "to")]
        from: Option<String>,
        /// Who gets it.
        #[arg(requires = "cents")]
        to: Option<String>,
        /// How much, in cents.
        #[arg(value_parser = cents)]
        cents: Option<i64>,
        /// Ends this process between the debit and the credit, as if it were killed.
        #[arg(long, requires = "from")]
        crash: bool,
    },
    /// Takes back an order that was delivered: it is paid back, its goods are free again, and the customer is told.
    ///
    /// No saga sees to that, but reactors that each do one thing, and an expectation that misses the refund. They run in this process
    /// unless another one runs them (`work`). A return that is typed again shows what came of it. Exit code 1 when it is not paid back
    /// in time.
    Return {
        /// The order; `sagas list fulfilment --state completed` shows those that were delivered.
        order: i64,
        /// Why it comes back.
        #[arg(long, value_name = "TEXT", default_value = "it is not what I wanted")]
        reason: String,
        /// Where the gateway is, if no other process runs the reactors; without it, the one whose books `fulfil` left.
        #[arg(long, value_name = "URL")]
        gateway: Option<String>,
        /// One line of JSON instead of a text.
        #[arg(long)]
        json: bool,
    },
    /// Places random orders in the online shop, has them fulfilled, and compares the log with the gateway's books (payments, refunds,
    /// shipments, messages to customers) and the stock.
    ///
    /// It starts a gateway of its own, with these switches, and processes that run the sagas and the reactors. Exit code 1 when
    /// anything does not agree, or has not ended; what differs stands on standard error.
    Fulfil {
        /// How many orders.
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = number::<1_000_000>)]
        count: usize,
        /// How many processes run the sagas.
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = number::<64>)]
        processes: usize,
        /// How often one of them is killed with SIGKILL, and started again.
        #[arg(long, value_name = "SECONDS", value_parser = seconds)]
        kill_every: Option<Duration>,
        #[command(flatten)]
        switches: Switches,
        /// Ends with one line of JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Compares what the log says with the gateway's books (payments, refunds, shipments, messages to customers), order by order and to
    /// the cent, and with the stock. Exit code 1 when anything does not agree.
    ///
    /// What was undone and is not paid back because an operator has seen to it agrees, and is shown.
    Reconcile {
        /// Where the gateway is; without it, the one whose books `fulfil` left.
        #[arg(long, value_name = "URL")]
        gateway: Option<String>,
        /// One line of JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Runs the sagas and the reactors, what they left undone first, until it is stopped.
    ///
    /// Several may run at once, and any may be killed: another goes on with what it ran. Orders of the online shop that are placed
    /// meanwhile are fulfilled, and their customers told.
    Work {
        #[command(flatten)]
        gateway: At,
        #[command(flatten)]
        life: Life,
    },
    /// Takes payments, books shipments and sends messages to customers, over HTTP: what the shop calls outside. Says where it listens
    /// once it is ready.
    ///
    /// Its books are a file of its own, which survives it. `GET /ledger` shows them; `GET` and `PUT /switches` show and set what
    /// goes wrong, while it runs. Requests that change something carry an `Idempotency-Key`, and are carried out once for it.
    Gateway {
        /// Where it listens; 0 for any port that is free.
        #[arg(long, value_name = "N", default_value_t = gateway::DEFAULT_PORT)]
        port: u16,
        /// The folder of its books.
        #[arg(long, value_name = "FOLDER", default_value = ".gateway")]
        data: PathBuf,
        #[command(flatten)]
        switches: Switches,
        #[command(flatten)]
        life: Life,
    },
}

/// How long a process lives.
#[derive(Debug, Args)]
pub(crate) struct Life {
    /// Ends when its standard input does, so that it does not outlive whoever started it.
    #[arg(long, hide = true)]
    pub(crate) attached: bool,
}

/// Where the gateway is.
#[derive(Debug, Args)]
pub(crate) struct At {
    /// Where the gateway is that takes payments and books shipments.
    #[arg(long = "gateway", value_name = "URL", default_value = gateway::DEFAULT_URL)]
    pub(crate) url: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Replay {
    /// Reads the whole log with this build, and writes nothing: run it before a deploy. Exit code 1 when an event fails, 130 when
    /// it was stopped.
    ///
    /// Every event goes through its upcasts, the aggregate and all read models. Other builds may run the shop meanwhile: nothing
    /// is migrated, started or rebuilt. What was discarded for a read model is left out for it. The first event that fails is
    /// shown with what to do about it.
    Check {
        /// One line of JSON instead of a text.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Projections {
    /// Shows how far every read model is, what it is doing, and who runs it.
    List {
        /// Sagas and reactors, too, which follow the log as read models do.
        #[arg(long)]
        all: bool,
        /// A line of JSON a read model instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Lets a read model stop where it is, until it is resumed. What it shows can be read meanwhile.
    Pause {
        /// The read model, saga or reactor.
        name: String,
        #[command(flatten)]
        by: Signature,
    },
    /// Lets a read model go on that was paused or that halted.
    Resume {
        /// The read model, saga or reactor.
        name: String,
        #[command(flatten)]
        by: Signature,
    },
    /// Builds a read model anew from the log, beside what serves, and waits until it has taken its place.
    ///
    /// Ctrl-C only ends the waiting, with exit code 130: the rebuild goes on in whichever process runs the read models, or with
    /// the next one. Exit code 1 when it is given up, halts, or another one takes its place.
    Rebuild {
        /// The read model.
        name: String,
        /// Events a second at most. Without it, the rebuild steps back while the log is being written.
        #[arg(long, value_name = "EVENTS_A_SECOND", value_parser = pace)]
        pace: Option<f64>,
        /// Only the document of this key, of a view, in place: everything else of it goes on.
        #[arg(long, conflicts_with = "pace")]
        key: Option<String>,
        #[command(flatten)]
        by: Signature,
    },
    /// Compares read models with what the log makes of them anew. Exit code 1 when any differs, 130 when it was stopped.
    ///
    /// Parked and discarded events are left out of the comparison, as they are of the read model.
    Verify {
        /// The read model; all of them without it.
        name: Option<String>,
        /// A line of JSON a read model instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Gives up what is being built for a read model. What serves stays.
    Cancel {
        /// The read model.
        name: String,
        #[command(flatten)]
        by: Signature,
    },
}

impl Projections {
    /// A list shows who runs the read models; all else takes that somebody does.
    pub(crate) fn role(&self) -> Role {
        if matches!(self, Self::List { .. }) { Role::Onlooker } else { Role::Operator }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Letters {
    /// Shows what is parked: failures that look alike in one row, with the age of the oldest.
    List {
        /// The read model, saga or reactor; all of them without it.
        name: Option<String>,
        /// A line of JSON an event instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Shows one event with all that is known of its failure, also if it was discarded.
    Show {
        /// The read model, saga or reactor.
        name: String,
        /// The event's position.
        #[arg(value_parser = position)]
        position: Position,
        /// A line of JSON a key that it is parked for.
        #[arg(long)]
        json: bool,
    },
    /// Tries parked events again, and waits for what comes of it. Exit code 3 when something is parked still.
    ///
    /// Each key begins with its first parked event. Without a choice, all that is parked is tried. A read model that is paused or
    /// halted tries it once it is resumed.
    Retry {
        /// The read models, sagas or reactors.
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        chosen: Chosen,
        #[command(flatten)]
        by: Signature,
    },
    /// Leaves parked events out for good, and waits until what stood behind them was tried. Takes a --reason.
    ///
    /// They stay in the log, with the reason, and every rebuild leaves them out, too. `--event POSITION` leaves out the one that
    /// failed. Without a choice, all that is parked is discarded, also good events that only wait. Exit code 3 when something
    /// behind them is parked still, or is tried only once a paused or halted read model is resumed.
    Discard {
        /// The read models, sagas or reactors.
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        chosen: Chosen,
        #[command(flatten)]
        by: Reasoned,
    },
}

impl Letters {
    /// Who lists what is parked moves nothing of it.
    pub(crate) fn role(&self) -> Role {
        if matches!(self, Self::List { .. } | Self::Show { .. }) { Role::Onlooker } else { Role::Operator }
    }

    /// Refuses what lacks something, before anything is opened.
    ///
    /// # Errors
    /// There is no reason to discard.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self {
            Self::Discard { by, .. } if by.reason.as_deref().is_none_or(|reason| reason.trim().is_empty()) => {
                Err("nothing was discarded: say why with --reason TEXT, which stays with the events".into())
            }
            _ => Ok(()),
        }
    }
}

/// Which parked events.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct Chosen {
    /// Those of this key.
    #[arg(long)]
    key: Option<String>,
    /// Those whose failures look alike.
    #[arg(long)]
    fingerprint: Option<String>,
    /// This event alone.
    #[arg(long, value_name = "POSITION", value_parser = position)]
    event: Option<Position>,
}

impl From<Chosen> for DeadLetters {
    fn from(chosen: Chosen) -> Self {
        match chosen {
            Chosen { key: Some(key), .. } => Self::Key(key),
            Chosen { fingerprint: Some(fingerprint), .. } => Self::Fingerprint(fingerprint),
            Chosen { event: Some(position), .. } => Self::Event(position),
            _ => Self::All,
        }
    }
}

/// Who does it, and why. Both are recorded.
#[derive(Debug, Args)]
pub(crate) struct Signature {
    /// Why; "by hand" without it.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Who; the login name without it.
    #[arg(long, value_name = "WHO")]
    by: Option<String>,
}

/// Who does it, and why, which must be given.
#[derive(Debug, Args)]
pub(crate) struct Reasoned {
    /// Why. It must be given, and is recorded.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Who; the login name without it.
    #[arg(long, value_name = "WHO")]
    by: Option<String>,
}

impl Reasoned {
    fn check(&self) -> Result<(), String> {
        match self.reason.as_deref().map(str::trim) {
            None | Some("") => Err("nothing was done: say why with --reason TEXT, which is recorded".into()),
            Some(_) => Ok(()),
        }
    }
}

impl From<Signature> for By {
    fn from(Signature { reason, by }: Signature) -> Self {
        Self::new(by.unwrap_or_else(login::name), reason.unwrap_or_else(|| "by hand".into()))
    }
}

impl From<Reasoned> for By {
    fn from(Reasoned { reason, by }: Reasoned) -> Self {
        Signature { reason, by }.into()
    }
}

fn position(text: &str) -> Result<Position, String> {
    match text.replace(',', "").parse() {
        Ok(number) if number > 0 => Ok(Position::new(number)),
        _ => Err("a position is a whole number from 1 on".into()),
    }
}

fn pace(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(pace) if pace > 0.0 && f64::is_finite(pace) => Ok(pace),
        _ => Err("a pace is a number of events a second, above 0".into()),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.replace(',', "").parse() {
        Ok(rate) if (0.1..=10_000.0).contains(&rate) => Ok(rate),
        _ => Err("a rate is a number of orders a second, 0.1 to 10,000".into()),
    }
}

fn cents(text: &str) -> Result<i64, String> {
    match text.replace(',', "").parse() {
        Ok(cents) if cents > 0 => Ok(cents),
        _ => Err("an amount is a whole number of cents, from 1 on".into()),
    }
}

fn number<const MOST: usize>(text: &str) -> Result<usize, String> {
    match text.replace(',', "").parse() {
        Ok(number) if (1..=MOST).contains(&number) => Ok(number),
        _ => Err(format!("a number is a whole one from 1 to {MOST}")),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=86_400.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("a time is a number of seconds from 0.1 on".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn what_can_be_typed_fits_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn positions_paces_and_rates_are_positive_numbers() {
        assert_eq!(position("1,051"), Ok(Position::new(1_051)));
        assert!(["0", "-3", "x", ""].iter().all(|text| position(text).is_err()));
        assert_eq!(pace("0.5"), Ok(0.5));
        assert!(["0", "-1", "inf", "NaN", "fast"].iter().all(|text| pace(text).is_err()));
        assert_eq!(["0.1", "10,000"].map(rate), [Ok(0.1), Ok(10_000.0)]);
        assert!(["0", "0.09", "-1", "10001", "inf", "NaN", "fast"].iter().all(|text| rate(text).is_err()));
    }

    #[test]
    fn amounts_numbers_and_times_are_what_they_say() {
        assert_eq!(cents("1,000"), Ok(1_000));
        assert!(["0", "-1", "1.5", "x"].iter().all(|text| cents(text).is_err()));
        assert_eq!(number::<10>("10"), Ok(10));
        assert!(["0", "11", "-1", "x"].iter().all(|text| number::<10>(text).is_err()));
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert!(["0", "-1", "inf", "NaN"].iter().all(|text| seconds(text).is_err()));
    }

    #[test]
    fn a_reason_is_by_hand_unless_it_must_be_given() {
        let signature = |reason: Option<&str>| Signature { reason: reason.map(Into::into), by: Some("ada".into()) };
        let discard = |reason: &[&str]| {
            let arguments = ["example-orders", "dead-letters", "discard", "order_search"];
            match Cli::parse_from(arguments.iter().chain(reason)).command {
                Some(Command::DeadLetters(letters)) => letters.check(),
                other => panic!("{other:?}"),
            }
        };

        assert_eq!(By::from(signature(None)), By::new("ada", "by hand"));
        assert_eq!(By::from(signature(Some("seen"))), By::new("ada", "seen"));
        assert_eq!(discard(&["--reason", "seen"]), Ok(()));
        assert!(discard(&[]).is_err() && discard(&["--reason", " "]).is_err());
    }
}

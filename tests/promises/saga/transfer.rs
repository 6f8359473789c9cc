//! Money between two accounts, with the crash between debit and credit at every place where it can be.

use annals::{ReadLog, testing::crash_everywhere};
use futures::TryStreamExt;

use super::*;
use crate::kit::AccountEvent;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Payment {
    from: String,
    to: String,
    cents: i64,
}

/// Debits one account and credits another; one that takes nothing gives it back.
struct Transfer;

impl Saga for Transfer {
    const NAME: &'static str = "transfer";
    type Event = OrderEvent;
    type Input = Payment;

    /// An order of `from>to` stands for the request.
    fn start(event: &Recorded<OrderEvent>) -> Option<(Id, Payment)> {
        let OrderEvent::Placed { customer, cents } = &event.event else { return None };
        let (from, to) = customer.split_once('>')?;
        let payment = Payment { from: from.into(), to: to.into(), cents: *cents };
        Some((event.stream.id().into(), payment))
    }

    fn steps(steps: Steps<Self>) -> Steps<Self> {
        steps
            .command::<Account>("debit", |cx| Ok(((&cx.input.from).into(), AccountCommand::Withdraw(cx.input.cents))))
            .undo_command::<Account>(|cx, ()| Ok(((&cx.input.from).into(), AccountCommand::Deposit(cx.input.cents))))
            .command::<Account>("credit", |cx| {
                let closed = cx.input.to == "closed";
                let command = if closed { AccountCommand::Show } else { AccountCommand::Deposit(cx.input.cents) };
                Ok(((&cx.input.to).into(), command))
            })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn money_is_neither_lost_nor_made_at_any_prefix_of_the_log_wherever_the_process_is_killed() {
    const ALL: i64 = 1_000;
    let points = crash_everywhere(
        || (),
        |store, ()| store.app().aggregate::<Order>().aggregate::<Account>().saga(Transfer),
        async |app, ()| {
            app.execute::<Account>("ada", AccountCommand::Deposit(ALL)).await.unwrap();
            for (id, (way, cents)) in [("ada>bob", 300), ("ada>closed", 200), ("bob>ada", 9_000)].iter().enumerate() {
                let place = OrderCommand::Place { customer: (*way).into(), cents: *cents };
                app.execute::<Order>(id, place).await.unwrap();
            }
        },
        async |app, ()| {
            let mut events = std::pin::pin!(app.store().read_log(ReadLog::default()));
            let (mut deposited, mut sum) = (false, 0);
            while let Some(stored) = events.try_next().await.unwrap() {
                if stored.stream.category() != "account" {
                    continue;
                }
                match app.decode::<AccountEvent>(&stored).unwrap().event {
                    AccountEvent::Deposited { cents } => sum += cents,
                    AccountEvent::Withdrawn { cents } => sum -= cents,
                    AccountEvent::Rated { .. } => {}
                }
                deposited |= sum == ALL;
                // What is under way is missing, and no more than that.
                let under_way = ALL - sum;
                assert!(!deposited || [0, 200, 300, 500].contains(&under_way), "{under_way} at {}", stored.position);
            }
            let mut ends = vec![];
            for id in 0..3 {
                ends.push(instance(app, &id.to_string()).await.unwrap().state);
            }
            let balances = (crate::kit::balance(app, "ada").await, crate::kit::balance(app, "bob").await);
            (ends, balances, sum)
        },
    )
    .await;
    assert!(points >= 16, "{points}");

    let database = database().await;
    let app = open(database.url()).await.app().aggregate::<Order>().aggregate::<Account>().saga(Transfer);
    let app = app.start().await.unwrap();
    app.execute::<Account>("ada", AccountCommand::Deposit(ALL)).await.unwrap();
    app.execute::<Order>("1", OrderCommand::Place { customer: "ada>bob".into(), cents: 300 }).await.unwrap();
    eventually("it arrives", || async { crate::kit::balance(&app, "bob").await == 300 }).await;
    assert_eq!(crate::kit::balance(&app, "ada").await, 700);
}

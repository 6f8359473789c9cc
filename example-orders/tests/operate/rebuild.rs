//! Rebuilds and comparisons.

use std::io::{BufRead, BufReader};

use crate::{Shop, signal, text};

#[tokio::test]
async fn a_rebuild_ends_with_the_swap_and_what_there_was_is_read_meanwhile() {
    let shop = Shop::open().await;
    let before = shop.all("generation");

    let mut rebuild = shop.command(&["projections", "rebuild", "order_search"]).spawn().unwrap();
    let mut reads = 0;
    while rebuild.try_wait().unwrap().is_none() {
        assert_eq!(shop.number("select count(*) from annals_order_search.orders").await, 1_000);
        reads += 1;
    }
    let output = rebuild.wait_with_output().unwrap();

    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("order_search was rebuilt"), "{}", text(&output.stdout));
    assert!(reads > 0);
    let after = shop.all("generation");
    assert_eq!(before[..3], after[..3]);
    assert_ne!(before[3], after[3]);
    assert_eq!(shop.number("select count(*) from annals_order_search.orders").await, 1_000);
}

/// Lets every rebuild begin paused, so that it is there for as long as a test looks at it.
const HOLD_REBUILDS: &str = "
    create function hold() returns trigger language plpgsql as $$ begin new.state := 'paused'; return new; end $$;
    create trigger hold before insert on annals.generations for each row when (new.purpose = 'rebuild') execute function hold()";

#[tokio::test]
async fn a_rebuild_that_nobody_watches_any_more_goes_on_or_is_given_up() {
    let shop = Shop::open().await;
    shop.execute(HOLD_REBUILDS).await;
    let watched = || {
        let mut rebuild = shop.command(&["projections", "rebuild", "order_search", "--pace", "5000"]).spawn().unwrap();
        let mut said = BufReader::new(rebuild.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(
            said.by_ref()
                .any(|line| line.contains("position 0 of ") && line.contains("projections resume order_search"))
        );
        (rebuild, said)
    };

    let (rebuild, said) = watched();
    signal(&rebuild, "-INT");
    let said: Vec<String> = said.collect();
    assert_eq!(rebuild.wait_with_output().unwrap().status.code(), Some(130));
    assert!(said.iter().any(|line| line.contains("the rebuild of order_search was not ended: it goes on")), "{said:?}");
    let model = shop.wait_for("order_search", "it is being rebuilt", |model| model["rebuild"]["state"] == "paused");
    assert_eq!((&model["state"], &model["rebuild"]["behind"]), (&"unowned".into(), &model["position"]));
    assert!(shop.prints(&["projections", "list"], 0).contains("└ rebuild"));

    shop.prints(&["projections", "resume", "order_search"], 0);
    let generation = model["rebuild"]["generation"].clone();
    let runner = shop.runs();
    shop.wait_for("order_search", "it has taken its place", |model| model["generation"] == generation);
    runner.end();

    // Another one in its place is none of its own success.
    let (replaced, said) = watched();
    let (other, others) = watched();
    let said = said.last().unwrap();
    assert_eq!(replaced.wait_with_output().unwrap().status.code(), Some(1));
    assert!(said.starts_with("error: the rebuild of order_search was given up for another one by "), "{said}");
    signal(&other, "-INT");
    drop(others);
    assert_eq!(other.wait_with_output().unwrap().status.code(), Some(130));

    let (rebuild, said) = watched();
    let said_to_other =
        shop.prints(&["projections", "cancel", "order_search", "--reason", "not now", "--by", "ada"], 0);
    assert!(said_to_other.contains("the rebuild was given up"), "{said_to_other}");
    let said = said.last().unwrap();
    assert_eq!(rebuild.wait_with_output().unwrap().status.code(), Some(1));
    assert_eq!(said, "error: the rebuild of order_search was given up by ada (not now); what serves stays");
    assert!(shop.prints(&["projections", "cancel", "order_search"], 0).contains("it is not being rebuilt"));
}

#[tokio::test]
async fn a_read_model_that_was_changed_by_hand_differs_until_it_is_rebuilt() {
    let shop = Shop::open().await;
    shop.execute("update annals_order_search.orders set lines = lines + 1 where id = (select min(id) from annals_order_search.orders)")
        .await;

    let verified = shop.objects(&["projections", "verify", "--json"], 1);
    let equal: Vec<_> = verified.iter().map(|verified| &verified["equal"]).collect();
    assert_eq!(equal, [true, true, true, false]);
    assert_eq!(verified[3]["first_difference"]["table"], "orders");
    let output = shop.run(&["projections", "verify", "order_search"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("differs"), "{}", text(&output.stdout));
    let advice = "all of it is mended by\n   cargo run -p example-orders -- projections rebuild order_search\n";
    assert!(text(&output.stderr).contains(advice), "{}", text(&output.stderr));
    for arguments in [&["projections", "verify"][..], &["projections", "verify", "--json"]] {
        let (errors, code) = shop.unread(arguments);
        assert_eq!(code, Some(1), "{arguments:?}: {errors}");
    }

    shop.prints(&["projections", "rebuild", "order_search"], 0);
    assert_eq!(shop.objects(&["projections", "verify", "order_search", "--json"], 0)[0]["equal"], true);
}

#[tokio::test]
async fn a_single_document_is_put_right() {
    let shop = Shop::open().await;
    shop.execute(
        "update annals_customer_spend.documents set document = document || '{\"orders\": -1}' \
         where key = (select min(key) from annals_customer_spend.documents)",
    )
    .await;
    let key: String =
        sqlx::query_scalar("select min(key) from annals_customer_spend.documents").fetch_one(&shop.pool).await.unwrap();

    let output = shop.run(&["projections", "verify", "customer_spend"]);
    let advice = format!("projections rebuild customer_spend --key {key}\n");
    assert!(text(&output.stderr).contains(&advice), "{}", text(&output.stderr));
    let rebuild = ["projections", "rebuild", "customer_spend", "--key", &key];
    let said = shop.prints(&[&rebuild[..], &["--reason", "seen wrong", "--by", "ada"]].concat(), 0);
    assert!(said.starts_with(&format!("customer_spend: {key} was folded anew from ")), "{said}");
    assert!(said.ends_with("it was wrong, and is mended\n"), "{said}");
    assert!(shop.prints(&rebuild, 0).ends_with("it was right\n"));
    assert_eq!(shop.objects(&["projections", "verify", "customer_spend", "--json"], 0)[0]["equal"], true);
    assert_eq!(shop.number("select count(*) from annals.actions where action = 'rebuild key'").await, 2);
    let output = shop.run(&["projections", "rebuild", "order_search", "--key", "1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("order_search is a projector"), "{}", text(&output.stderr));
}

#[tokio::test]
async fn a_store_of_the_version_before_is_rebuilt_by_the_next_start() {
    let shop = Shop::open().await;
    shop.execute("update annals.generations set version = 1 where follower = 'order_search'").await;
    shop.execute("update annals.checkpoints set version = 1 where follower = 'order_search'").await;
    shop.execute("alter table annals_order_search.orders drop column discount_cents").await;

    let runner = shop.runs();
    shop.wait_for("order_search", "version 3 serves", |model| model["version"] == 3);
    runner.end();

    assert!(shop.number("select sum(discount_cents)::bigint from annals_order_search.orders").await > 0);
    assert_eq!(shop.number("select count(*) from annals_order_search.orders").await, 1_000);
}

//! Looking after the read models, as a person types it: what it prints, what it changes, and its exit codes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs::OpenOptions,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use annals::testing::{TestDatabase, database};
use serde_json::Value;
use sqlx::PgPool;

const SAMPLE: &str = include_str!("../data/orders-sample.csv");

const NAMES: [&str; 4] = ["customer_spend", "department_sales", "open_orders", "order_search"];

/// A database with the sample's orders in it, and in its read models.
struct Shop {
    database: TestDatabase,
    pool: PgPool,
}

impl Shop {
    async fn open() -> Self {
        let database = database().await;
        let pool = database.pool().await;
        let shop = Self { database, pool };
        shop.import(SAMPLE);
        for name in NAMES {
            shop.wait_for(name, "the sample is in it", |model| model["behind"] == 0);
        }
        shop
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_example-orders"));
        command.args(arguments).env("DATABASE_URL", self.database.url()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What `arguments` print, which end with exit code `code`.
    fn prints(&self, arguments: &[&str], code: i32) -> String {
        let output = self.run(arguments);
        let (said, errors) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}{errors}");
        said
    }

    /// The objects that `arguments` print, one a line.
    fn objects(&self, arguments: &[&str], code: i32) -> Vec<Value> {
        self.prints(arguments, code).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn import(&self, orders: &str) {
        let file = std::env::temp_dir().join(format!("{}.csv", self.database.name()));
        std::fs::write(&file, orders).unwrap();
        self.prints(&["import", file.to_str().unwrap(), "--json"], 0);
        std::fs::remove_file(file).unwrap();
    }

    fn list(&self) -> Vec<Value> {
        self.objects(&["projections", "list", "--json"], 0)
    }

    /// `field` of every read model.
    fn all(&self, field: &str) -> Vec<Value> {
        self.list().iter().map(|model| model[field].clone()).collect()
    }

    /// Lists the read models until `condition` holds for the one that is called `name`.
    fn wait_for(&self, name: &str, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let model = self.list().into_iter().find(|model| model["name"] == name).unwrap();
            if condition(&model) {
                return model;
            }
            assert!(Instant::now() < deadline, "not in a minute: {what}: {model}");
        }
    }

    async fn number(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.unwrap()
    }

    async fn execute(&self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(&self.pool).await.unwrap();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A file of one order with one line.
fn order(id: i64, product: &str) -> String {
    let header = SAMPLE.lines().next().unwrap();
    assert_eq!(
        header,
        "order_id,customer_id,store_id,placed_at,sku,product,department,quantity,amount_cents,discount_cents"
    );
    format!("{header}\n{id},7,3,2017-01-31T12:00:00Z,1,{product},GROCERY,1,100,25\n")
}

#[tokio::test]
async fn a_list_shows_every_read_model_how_far_it_is_and_who_runs_it() {
    let shop = Shop::open().await;

    let models = shop.list();

    let names: Vec<&str> = models.iter().map(|model| model["name"].as_str().unwrap()).collect();
    assert_eq!(names, NAMES);
    for model in &models {
        assert_eq!((&model["state"], &model["behind"], &model["parked"]), (&"running".into(), &0.into(), &0.into()));
        assert!(model["position"].as_i64().unwrap() >= 1_000, "{model}");
        assert!(model["owner"].as_str().unwrap().starts_with("example-orders "), "{model}");
    }
    let table = shop.prints(&["projections", "list"], 0);
    assert!(NAMES.iter().all(|name| table.contains(name)), "{table}");
    assert!(shop.objects(&["dead-letters", "list", "--json"], 0).is_empty());
    assert_eq!(shop.prints(&["dead-letters", "list"], 0), "nothing is parked\n");
}

#[tokio::test]
async fn a_poison_event_is_parked_shown_tried_in_vain_and_discarded_for_a_reason() {
    let shop = Shop::open().await;

    let said = shop.prints(&["plant-poison"], 0);
    assert!(said.contains("dead-letters discard customer_spend department_sales open_orders order_search"), "{said}");
    assert_eq!(shop.all("parked"), [2, 2, 2, 2]);
    assert_eq!(shop.all("behind"), [0, 0, 0, 0]);

    let letters = shop.objects(&["dead-letters", "list", "order_search", "--json"], 0);
    let states: Vec<_> = letters.iter().map(|letter| &letter["state"]).collect();
    assert_eq!(states, ["failed", "queued"]);
    assert!(letters[0]["age_seconds"].as_i64().unwrap() >= 0);
    let table = shop.prints(&["dead-letters", "list"], 0);
    assert!(table.contains("cannot read event OrderPlaced"), "{table}");
    let position = letters[0]["position"].to_string();
    let shown = shop.prints(&["dead-letters", "show", "order_search", &position], 0);
    for part in ["OrderPlaced at position", "version 1", "invalid type", "three loaves of bread"] {
        assert!(shown.contains(part), "{part} is missing in {shown}");
    }
    let shown = shop.objects(&["dead-letters", "show", "order_search", &position, "--json"], 0);
    assert_eq!(shown[0]["payload"]["customer"], "somebody");

    let said = shop.prints(&["dead-letters", "retry", "order_search"], 3);
    assert!(said.contains("1 key was tried again; nothing took effect, 2 events parked still: cannot read"), "{said}");

    let discard = ["dead-letters", "discard", NAMES[0], NAMES[1], NAMES[2], NAMES[3], "--event", &position];
    let said = shop.prints(&[&discard[..], &["--reason", "not an order", "--by", "ada"]].concat(), 0);
    assert_eq!(said.matches("1 event was discarded; 1 event took effect").count(), 4, "{said}");
    assert_eq!(shop.all("parked"), [0, 0, 0, 0]);
    assert_eq!(shop.all("discarded"), [1, 1, 1, 1]);
    let shown = shop.prints(&["dead-letters", "show", "order_search", &position], 0);
    assert!(shown.contains("by ada") && shown.contains("not an order"), "{shown}");
    assert_eq!(shop.number("select count(*) from annals_order_search.orders").await, 1_001);

    let verified = shop.objects(&["projections", "verify", "--json"], 0);
    assert!(verified.len() == 4 && verified.iter().all(|verified| verified["equal"] == true), "{verified:?}");
    shop.prints(&["projections", "rebuild", "order_search"], 0);
    assert_eq!(shop.all("parked"), [0, 0, 0, 0]);
}

#[tokio::test]
async fn a_retry_takes_effect_once_the_cause_is_mended() {
    let shop = Shop::open().await;
    shop.execute("alter table annals_order_search.orders add constraint no_ghosts check (products <> 'GHOST')").await;
    shop.import(&order(1, "GHOST"));
    shop.wait_for("order_search", "the order is parked", |model| model["parked"] == 1);

    let said = shop.prints(&["dead-letters", "retry", "order_search", "--key", "order-1"], 3);
    assert!(said.contains("no_ghosts"), "{said}");
    let said = shop.run(&["dead-letters", "retry", "order_search", "--key", "order-2"]);
    assert_eq!(said.status.code(), Some(1));
    assert!(text(&said.stderr).contains("nothing of that is parked"), "{}", text(&said.stderr));

    // As after its last attempt by itself.
    shop.execute("update annals.dead_letters set next_attempt_at = null").await;
    shop.execute("alter table annals_order_search.orders drop constraint no_ghosts").await;
    let said = shop.prints(&["dead-letters", "retry", "order_search"], 0);

    assert_eq!(said, "order_search: 1 key was tried again; 1 event took effect\n");
    assert_eq!(shop.prints(&["dead-letters", "retry", "order_search"], 0), "nothing is parked\n");
    assert_eq!(shop.number("select discount_cents from annals_order_search.orders where id = '1'").await, 25);
    assert_eq!(shop.all("parked"), [0, 0, 0, 0]);
}

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

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
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
        assert!(said.by_ref().any(|line| line.contains("position 0 of 1,000")));
        (rebuild, said)
    };

    let (rebuild, said) = watched();
    signal(&rebuild, "-INT");
    let said: Vec<String> = said.collect();
    assert_eq!(rebuild.wait_with_output().unwrap().status.code(), Some(0));
    assert!(said.iter().any(|line| line.contains("the rebuild of order_search was not ended: it goes on")), "{said:?}");
    let model = shop.wait_for("order_search", "it is being rebuilt", |model| model["rebuild"]["state"] == "paused");
    assert_eq!((&model["state"], &model["rebuild"]["behind"]), (&"running".into(), &1_000.into()));
    assert!(shop.prints(&["projections", "list"], 0).contains("└ rebuild"));

    shop.prints(&["projections", "resume", "order_search"], 0);
    let generation = model["rebuild"]["generation"].clone();
    shop.wait_for("order_search", "it has taken its place", |model| model["generation"] == generation);

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
async fn a_paused_read_model_stays_where_it_is_until_it_is_resumed() {
    let shop = Shop::open().await;

    shop.prints(&["projections", "pause", "order_search", "--reason", "a closer look", "--by", "ada"], 0);
    assert!(shop.prints(&["projections", "pause", "order_search"], 0).contains("is paused already"));
    shop.import(&order(1, "PEAS"));

    let models = shop.list();
    let states: Vec<_> = models.iter().map(|model| &model["state"]).collect();
    assert_eq!(states, ["running", "running", "running", "paused"]);
    assert_eq!(models[3]["reason"], "a closer look, by ada");
    assert!(models[3]["behind"].as_i64().unwrap() > 0, "{}", models[3]);
    assert_eq!(shop.number("select count(*) from annals_order_search.orders").await, 1_000);

    shop.prints(&["projections", "resume", "order_search"], 0);
    assert!(shop.prints(&["projections", "resume", "order_search"], 0).contains("is not paused"));
    shop.wait_for("order_search", "it caught up", |model| model["state"] == "running" && model["behind"] == 0);
    assert_eq!(shop.number("select count(*) from annals_order_search.orders").await, 1_001);
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
    assert!(text(&output.stderr).contains("`projections rebuild order_search` mends it"), "{}", text(&output.stderr));

    shop.prints(&["projections", "rebuild", "order_search"], 0);
    assert_eq!(shop.objects(&["projections", "verify", "order_search", "--json"], 0)[0]["equal"], true);
}

#[tokio::test]
async fn a_store_of_the_version_before_is_rebuilt_by_the_next_start() {
    let shop = Shop::open().await;
    shop.execute("update annals.generations set version = 1 where follower = 'order_search'").await;
    shop.execute("update annals.checkpoints set version = 1 where follower = 'order_search'").await;
    shop.execute("alter table annals_order_search.orders drop column discount_cents").await;

    shop.wait_for("order_search", "version 2 serves", |model| model["version"] == 2);

    assert!(shop.number("select sum(discount_cents)::bigint from annals_order_search.orders").await > 0);
    assert_eq!(shop.number("select count(*) from annals_order_search.orders").await, 1_000);
}

#[tokio::test]
async fn what_is_wrong_is_told_in_a_line_and_changes_nothing() {
    let shop = Shop::open().await;
    let unknown =
        "there is no read model \"nope\": there are customer_spend, department_sales, open_orders, order_search";

    for (arguments, expected) in [
        (&["projections", "pause", "nope"][..], unknown),
        (&["projections", "resume", "nope"], unknown),
        (&["projections", "rebuild", "nope"], unknown),
        (&["projections", "cancel", "nope"], unknown),
        (&["projections", "verify", "nope"], unknown),
        (&["dead-letters", "list", "nope"], unknown),
        (&["dead-letters", "show", "nope", "1"], unknown),
        (&["dead-letters", "show", "order_search", "1"], "order_search has parked no event at position 1"),
        (&["dead-letters", "retry", "order_search", "nope"], unknown),
        (&["dead-letters", "retry", "order_search", "--event", "1"], "nothing of that is parked"),
        (&["dead-letters", "discard", "order_search"], "say why with --reason TEXT"),
        (&["dead-letters", "discard", "order_search", "--reason", " "], "say why with --reason TEXT"),
    ] {
        let output = shop.run(arguments);
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
        assert!(errors.starts_with("error: ") && errors.contains(expected), "{arguments:?}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{arguments:?}: {errors}");
    }
    for arguments in [
        &["projections", "rebuild", "order_search", "--pace", "0"][..],
        &["dead-letters", "show", "order_search", "0"],
        &["dead-letters", "retry"],
        &["dead-letters", "retry", "order_search", "--key", "a", "--event", "1"],
    ] {
        assert_eq!(shop.run(arguments).status.code(), Some(2), "{arguments:?}");
    }
    assert_eq!(shop.number("select count(*) from annals.actions").await, 0);
}

#[tokio::test]
async fn beside_a_process_that_runs_the_read_models_nothing_moves_but_what_was_asked_for() {
    let shop = Shop::open().await;
    let pipe: PathBuf = std::env::temp_dir().join(format!("{}.pipe", shop.database.name()));
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let other = shop.command(&["import", pipe.to_str().unwrap(), "--json"]).spawn().unwrap();
    let mut input = OpenOptions::new().write(true).open(&pipe).unwrap();
    input.write_all(SAMPLE.as_bytes()).unwrap();
    let owner = format!("example-orders {}", other.id());
    let owners = [&*owner; 4];
    let deadline = Instant::now() + Duration::from_secs(60);
    while shop.number("select count(*) from annals.lag where owner is not null").await < 4 {
        assert!(Instant::now() < deadline, "the other process runs nothing");
        tokio::task::yield_now().await;
    }

    assert_eq!(shop.all("owner"), owners);
    shop.prints(&["plant-poison"], 0);
    assert_eq!(shop.all("parked"), [2, 2, 2, 2]);
    shop.prints(&["dead-letters", "retry", "order_search"], 3);
    shop.prints(&["dead-letters", "discard", "order_search", "--reason", "a test"], 0);
    assert_eq!(shop.all("parked"), [2, 2, 2, 0]);
    shop.prints(&["projections", "rebuild", "order_search"], 0);
    shop.prints(&["projections", "verify"], 0);
    shop.prints(&["projections", "pause", "open_orders"], 0);
    shop.prints(&["projections", "resume", "open_orders"], 0);
    shop.wait_for("open_orders", "it goes on", |model| model["state"] == "running");
    assert_eq!(shop.all("owner"), owners);

    drop(input);
    assert_eq!(other.wait_with_output().unwrap().status.code(), Some(0));
    std::fs::remove_file(pipe).unwrap();
}

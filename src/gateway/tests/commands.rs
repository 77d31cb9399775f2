//! Commands, where a simulated seed once found that a promise was broken.

use super::{link::Bench, *};

const COMMAND: &str =
    r#"{"type":"command","id":"c","device":"d","name":"n","ttl_ms":20000,"idempotent":true}"#;

/// The spool could not be opened when the gateway started, and with it the journal of commands.
/// The hub sent again what the gateway had run before; it was taken for new, and went to the device
/// a second time once the disk was there.
#[test]
fn without_its_journal_the_gateway_takes_no_command() {
    let mut bench = Bench::without_disk();
    bench.welcomed();
    bench.gateway.handle_text(bench.now, COMMAND);
    assert_eq!(bench.gateway.commands.counts(), (0, 0), "the next session brings it again");
    let mut bench = Bench::holding(Held::default());
    bench.welcomed();
    bench.gateway.handle_text(bench.now, COMMAND);
    assert_eq!(bench.gateway.commands.counts(), (1, 1));
}

/// An idempotent command ran, the gateway was killed before the reply, and the hub sent it again
/// when its time was over: it ended `expired`, which says that it never ran.
#[test]
fn a_command_that_may_have_run_does_not_end_as_if_it_had_not() {
    let kept = r#"{"fingerprint":0,"sending":true,"keep_until_ms":1790000020000}"#;
    let fingerprint = {
        let mut bench = Bench::holding(Held::default());
        bench.welcomed();
        bench.gateway.handle_text(bench.now, COMMAND);
        let journal = bench.journalled();
        let text = String::from_utf8(journal[0].1.to_vec()).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value["fingerprint"].to_string()
    };
    let kept = kept.replace(r#""fingerprint":0"#, &format!(r#""fingerprint":{fingerprint}"#));
    let journal = vec![("c".to_owned(), Bytes::from(kept))];
    let mut bench = Bench::holding(Held { journal, ..Held::default() });
    bench.welcomed();
    bench.gateway.handle_text(bench.now, &COMMAND.replace("20000", "0"));
    let journal = bench.journalled();
    let last = String::from_utf8(journal.last().unwrap().1.to_vec()).unwrap();
    assert!(last.contains(r#""state":"unknown""#), "{last}");
}

//! Commands, where a promise was once broken.

use std::collections::BTreeMap;

use super::{link::Bench, *};
use crate::spool::simulated::SimulatedDisk;

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

/// Each of 10,000 ids kept a result of up to 64 KiB for a day and its ttl, in memory twice and on
/// disk: a busy day got the process killed for its memory, and the next start read the same journal
/// and was killed again.
#[test]
fn a_large_result_is_kept_until_the_hub_has_it_and_its_state_for_days() {
    let mut bench = Bench::holding(Held::default());
    bench.welcomed();
    run(&mut bench, "c", 60_000);
    assert!(bench.gateway.commands.unacknowledged().1 > 60_000);
    bench.sent.clear();
    bench.gateway.handle_text(bench.now, &command("c"));
    bench.look();
    assert!(bench.texts().is_empty(), "its report is on its way");

    acknowledge_events(&mut bench);
    assert_eq!(bench.gateway.commands.unacknowledged(), (0, 0));
    bench.gateway.handle_text(bench.now, &command("c"));
    bench.look();
    let answer = said(&bench);
    assert!(answer.contains(r#""n":2,"state":"succeeded","error":{"code":"reported""#), "{answer}");

    // The journal lets go of it beside its next change, and a restart answers alike.
    run(&mut bench, "d", 10);
    let journal = journal_of(&mut bench);
    assert!(journal["c"].len() < 1000, "{} bytes", journal["c"].len());
    let mut bench = Bench::holding(Held { journal: Vec::from_iter(journal), ..Held::default() });
    bench.welcomed();
    bench.gateway.handle_text(bench.now, &command("c"));
    bench.look();
    let answer = said(&bench);
    assert!(answer.contains(r#""state":"succeeded","error":{"code":"reported""#), "{answer}");
    bench.gateway.handle_text(bench.now, &command("d"));
    bench.look();
    assert!(said(&bench).contains("\"result\":{"), "a small one stays");
}

/// A time service set the clock fifteen years ahead while the hub was away: the end of a command
/// was forgotten, and when the hub asked for it again, it got another one.
#[test]
fn an_end_that_the_hub_has_yet_to_hear_of_is_not_forgotten_whatever_the_clock_says() {
    for is_heard in [false, true] {
        let mut bench = Bench::holding(Held::default());
        bench.welcomed();
        run(&mut bench, "c", 10);
        if is_heard {
            acknowledge_events(&mut bench);
        }
        bench.now.wall.unix_ms += 15 * 365 * 24 * 3600 * 1000;
        bench.now.instant += FORGET_EVERY;
        bench.gateway.handle_timeout(bench.now);
        let kept = if is_heard { 0 } else { 1 };
        assert_eq!(bench.gateway.commands.counts(), (0, kept), "heard of: {is_heard}");
    }
}

#[test]
fn results_that_the_hub_does_not_acknowledge_make_the_gateway_busy() {
    let mut bench = Bench::holding(Held::default());
    bench.welcomed();
    for number in 0..100 {
        run(&mut bench, &format!("c-{number}"), 60_000);
        let (_, bytes) = bench.gateway.commands.unacknowledged();
        assert!(bytes < (1 << 20) + 64 * 1024, "{bytes} bytes of results");
    }
    let last = journal_of(&mut bench)["c-99"].clone();
    let last = String::from_utf8(last.to_vec()).unwrap();
    assert!(last.contains(r#""state":"rejected","error":{"code":"busy""#), "{last}");
    acknowledge_events(&mut bench);
    run(&mut bench, "again", 60_000);
    assert!(bench.gateway.commands.unacknowledged().1 > 60_000, "it ran");
}

/// A report that the spool lost goes as a skip, which the hub acknowledges like a record.
#[test]
fn a_final_state_that_the_spool_lost_is_reported_again_in_the_same_session() {
    let mut bench = Bench::holding(Held::default());
    bench.welcomed();
    // Of the first, memory keeps nothing once the disk has them.
    for number in 0..15 {
        run(&mut bench, &format!("c-{number}"), 60_000);
    }
    bench.pass(Duration::from_secs(2));
    bench.gateway.handle_appended(bench.now, Ok(crate::spool::Appended::default()));
    bench.look();
    let mut said = String::new();
    while bench.gateway.lanes[EVENTS].held_records() > 0 {
        said += &self::said(&bench);
        acknowledge_some_events(&mut bench);
        while let Some(at) = bench.disk.iter().position(|r| matches!(r, DiskRequest::Read { .. })) {
            let DiskRequest::Read { lane, epoch, from, .. } = bench.disk.remove(at) else { break };
            let lost = crate::spool::Item::Skip { from, to: from + 4, reason: "damaged".into() };
            bench.gateway.handle_read(bench.now, lane, epoch, Ok(vec![lost]));
            bench.look();
        }
    }
    said += &self::said(&bench);
    assert!(said.contains(r#""type":"skip""#), "some were lost");
    for number in 0..15 {
        let told = format!(r#""id":"c-{number}","n":2,"state":"succeeded","result":{{"#);
        assert!(said.contains(&told), "the hub never learns how c-{number} ended");
    }
}

/// A report that the hub can't bear is skipped for that: again and again, were it always made anew.
#[test]
fn a_final_state_that_is_skipped_twice_is_left_until_the_hub_asks() {
    let mut bench = Bench::holding(Held::default());
    bench.welcomed();
    run(&mut bench, "c", 60_000);
    let before = bench.gateway.lanes[EVENTS].held_records();
    for _ in 0..3 {
        bench.gateway.commands.handle_acked(|_| true, |_| true);
        bench.gateway.handle_timeout(bench.now);
    }
    assert_eq!(bench.gateway.lanes[EVENTS].held_records(), before + 1);
    assert_eq!(bench.gateway.commands.unacknowledged(), (0, 0), "what it couldn't bear is gone");
}

/// What an earlier version left: the start itself was what the board could not bear.
#[test]
fn a_start_bears_a_journal_that_an_earlier_version_let_grow() {
    let medium = SimulatedDisk::new(1);
    let mut journal = Journal::open(&medium, without_result).unwrap();
    let mut bench = Bench::holding(Held::default());
    bench.welcomed();
    run(&mut bench, "c", 60_000);
    let entry = journal_of(&mut bench)["c"].clone();
    let entries = (0..400).map(|number| (format!("c-{number}"), entry.clone()));
    journal.put(&medium, &Vec::from_iter(entries)).unwrap();
    let written = medium.account().bytes;
    assert!(written > 20 << 20, "{written} bytes");

    let mut journal = Journal::open(&medium, without_result).unwrap();
    let entries = || journal.entries().map(|(id, entry)| (id.to_owned(), entry.clone()));
    let bytes: usize = entries().map(|(_, entry)| entry.len()).sum();
    assert!(bytes < 400 * 1000, "{bytes} bytes of {written}");
    let mut bench = Bench::holding(Held { journal: entries().collect(), ..Held::default() });
    bench.welcomed();
    bench.gateway.handle_text(bench.now, &command("c-0"));
    bench.look();
    let answer = said(&bench);
    assert!(answer.contains(r#""state":"succeeded","error":{"code":"reported""#), "{answer}");
    assert_eq!(bench.gateway.commands.counts(), (0, 400), "it is not run again");
    journal.put(&medium, &[("new".into(), "x".into())]).unwrap();
    assert!(medium.account().bytes - written < 1 << 20, "it is lean on disk too");
}

/// Results that an earlier start left make no room for none: what the hub lacked of them it has
/// asked for when the session began.
#[test]
fn results_of_an_earlier_start_do_not_make_the_gateway_busy() {
    let mut bench = Bench::holding(Held::default());
    bench.welcomed();
    run(&mut bench, "c", 60_000);
    let entry = journal_of(&mut bench)["c"].clone();
    let journal = (0..30).map(|number| (format!("c-{number}"), entry.clone())).collect();
    let mut bench = Bench::holding(Held { journal, ..Held::default() });
    bench.welcomed();
    bench.gateway.handle_text(bench.now, &command("c-0"));
    bench.look();
    assert!(said(&bench).contains("\"result\""), "the hub asked for this one");
    run(&mut bench, "new", 10);
    let (_, bytes) = bench.gateway.commands.unacknowledged();
    assert!(bytes < 1 << 20, "{bytes}");
    assert!(String::from_utf8_lossy(&journal_of(&mut bench)["new"]).contains("succeeded"));
}

/// Every repeat of a finished id, of one with another content, and every new one while the journal
/// was full, put another event into memory, which no bound held back.
#[test]
fn a_hub_that_asks_again_and_again_does_not_fill_the_memory() {
    let kept = r#"{"fingerprint":0,"sending":false,"keep_until_ms":1790000020000,
        "last":{"id":"x","n":1,"state":"expired"}}"#;
    let journal = (0..10_000).map(|number| (format!("c-{number}"), Bytes::from(kept))).collect();
    let mut bench = Bench::holding(Held { journal, ..Held::default() });
    bench.welcomed();
    for round in 0..10 {
        for number in 0..3000 {
            for id in [format!("c-{}", number % 2), format!("new-{number}")] {
                bench.gateway.handle_text(bench.now, &command(&id));
            }
        }
        bench.look();
        let events = bench.gateway.lanes[EVENTS].held_records();
        assert!(events <= 2048, "{events} events in round {round}");
    }
    let memory = bench.gateway.memory_bytes();
    assert!(memory < 1 << 20, "{memory} bytes");
}

/// `held + 1` of the largest number that fits overflowed.
#[test]
fn a_status_number_that_cannot_rise_is_refused() {
    let mut bench = Bench::holding(Held::default());
    bench.welcomed();
    for n in [u32::MAX, 1 << 31] {
        let state = format!(r#""state":{{"n":{n},"state":"accepted"}}}}"#);
        let text =
            command("c").replace(r#""ttl_ms":20000}"#, &format!(r#""ttl_ms":20000,{state}"#));
        assert!(text.contains(&n.to_string()));
        bench.gateway.handle_text(bench.now, &text);
    }
    bench.look();
    assert_eq!(bench.gateway.commands.counts(), (0, 0));
    let answer = said(&bench);
    assert!(answer.contains("bad_message") && answer.contains("state.n"), "{answer}");
    let largest = (1_u32 << 31) - 1;
    let state = format!(r#""state":{{"n":{largest},"state":"accepted"}}}}"#);
    let text = command("c").replace(r#""ttl_ms":20000}"#, &format!(r#""ttl_ms":20000,{state}"#));
    bench.gateway.handle_text(bench.now, &text);
    let journal = journal_of(&mut bench);
    let kept = String::from_utf8_lossy(&journal["c"]);
    assert!(kept.contains(r#""n":2147483648,"state":"unknown""#), "{kept}");
}

/// The report `accepted` was at the hub, and the journal had yet to have it when the power went:
/// the end got the same number, and the hub, for which numbers only rise, never took it.
#[test]
fn an_end_is_numbered_above_what_the_hub_holds_though_the_journal_does_not_know_of_it() {
    let mut bench = Bench::holding(Held::default());
    bench.welcomed();
    bench.gateway.handle_text(bench.now, &command("c"));
    bench.look();
    let journal = bench.journalled();
    let [(_, entry)] = &journal[..] else { panic!("{journal:?}") };
    assert!(String::from_utf8_lossy(entry).contains(r#""sending":true"#), "{entry:?}");
    let mut bench = Bench::holding(Held { journal, ..Held::default() });
    bench.welcomed();
    let again = command("c").replace('}', r#","state":{"n":1,"state":"accepted"}}"#);
    bench.gateway.handle_text(bench.now, &again);
    bench.look();
    bench.gateway.handle_journalled(bench.now, Ok(()));
    bench.look();
    assert!(said(&bench).contains(r#""n":2,"state":"unknown""#), "{}", said(&bench));
}

fn command(id: &str) -> String {
    format!(r#"{{"type":"command","id":"{id}","device":"d","name":"n","ttl_ms":20000}}"#)
}

/// Sends a command, and answers it as the device with so much of a result.
fn run(bench: &mut Bench, id: &str, result_bytes: usize) {
    bench.gateway.handle_text(bench.now, &command(id));
    journal_of(bench);
    let publish = Publish {
        topic: format!("devices/d/replies/{id}"),
        payload: format!(r#"{{"ok":true,"result":{{"x":"{}"}}}}"#, "x".repeat(result_bytes)).into(),
        retained: false,
        source: SourceId(0),
        receipt: None,
        packet: None,
    };
    bench.gateway.handle_publish(bench.now, publish);
    journal_of(bench);
}

/// Has the disk do what the journal waits for, and says what it holds of all that it was given.
fn journal_of(bench: &mut Bench) -> BTreeMap<String, Bytes> {
    loop {
        let before = bench.journalled().len();
        bench.gateway.handle_journalled(bench.now, Ok(()));
        if bench.journalled().len() == before {
            return bench.journalled().into_iter().collect();
        }
    }
}

fn acknowledge_events(bench: &mut Bench) {
    while bench.gateway.lanes[EVENTS].held_records() > 0 {
        acknowledge_some_events(bench);
    }
    bench.sent.clear();
}

/// Acknowledges what was sent of them, and sees what is sent then.
fn acknowledge_some_events(bench: &mut Bench) {
    bench.sent.clear();
    let stream = StreamName::try_from("events".to_owned()).unwrap();
    let position = Position { stream, epoch: Epoch(0xe001), acked: 1 << 20, window: None };
    bench.hear(HubMessage::Ack(Ack { position, rejected: Vec::new() }));
}

fn said(bench: &Bench) -> String {
    bench.texts().into_iter().map(String::as_str).collect()
}

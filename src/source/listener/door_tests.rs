use std::{fs, net::SocketAddr};

use futures_util::{FutureExt as _, future::join_all};

use super::*;
use crate::{identity::change_users, source::listener::refusals::LogLines};

struct Bench {
    _folder: tempfile::TempDir,
    file: PathBuf,
    door: Door,
}

const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7);
const WRONG: Result<Principal, ConnectReturnCode> = Err(ConnectReturnCode::BadUserNamePassword);

/// A door with the devices `plc-01` (generated password, returned) and `hall` ("correct horse").
fn bench(anonymous: bool) -> (Bench, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("devices");
    let (password, digest) = crate::identity::generate(&SystemRandom::new()).unwrap();
    set(&file, "plc-01", Role::Device, digest);
    let config = listener(Some(file.clone()), anonymous);
    let door = Door::open(&config).unwrap();
    (Bench { _folder: folder, file, door }, password.to_string())
}

fn listener(users_file: Option<PathBuf>, anonymous: bool) -> config::Listener {
    let bind = Some(PEER);
    config::Listener {
        bind,
        tls: None,
        users_file,
        anonymous,
        max_clients: 1,
        max_publish_rate: None,
        max_inflight: 1,
    }
}

fn set(file: &Path, name: &str, role: Role, digest: PasswordDigest) {
    change_users(file, |users| users.set(name, User { role, digest })).unwrap();
}

fn chosen(password: &str) -> PasswordDigest {
    PasswordDigest::of_chosen(password.as_bytes(), &SystemRandom::new()).unwrap()
}

fn login(user: &str, password: &str) -> Option<Login> {
    Some(Login { user: user.into(), password: password.as_bytes().to_vec().into() })
}

impl Bench {
    async fn admit(&self, user: &str, password: &str) -> Result<Principal, ConnectReturnCode> {
        self.door.admit(PEER, &Shown::Nothing, login(user, password)).await
    }
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_name_are_the_same_from_outside() {
    let (bench, password) = bench(false);
    assert_eq!(bench.admit("plc-01", &password).await, Ok(Principal::Device("plc-01".into())));
    let came = Instant::now();
    let wrong = [("plc-01", "guess"), ("plc-01", ""), ("plc-99", &*password), ("", "")];
    join_all(wrong.map(async |(user, password)| {
        assert_eq!(bench.admit(user, password).await, WRONG, "{user}");
        assert!(came.elapsed() >= FAILURE_PAUSE, "{user}");
    }))
    .await;
    let nothing = bench.door.admit(PEER, &Shown::Nothing, None).await;
    assert_eq!(nothing, Err(ConnectReturnCode::NotAuthorized));
}

#[tokio::test]
async fn a_chosen_password_is_checked_beside_the_loop_and_known_again() {
    let (bench, _) = bench(false);
    set(&bench.file, "hall", Role::Service, chosen("correct horse"));
    assert_eq!(bench.door.refresh().await, []);
    let hall = Ok(Principal::Service("hall".into()));
    assert_eq!(bench.admit("hall", "correct horse").await, hall);
    assert_eq!(bench.admit("hall", "correct horsf").await, WRONG);
    // Were it looked at, it would wait for its turn for ever.
    let _turn = bench.door.slow.acquire().await.unwrap();
    assert_eq!(bench.admit("hall", "correct horse").await, hall);
    set(&bench.file, "hall", Role::Service, chosen("another one"));
    let changed = Change { name: "hall".into(), forget: false };
    assert_eq!(bench.door.refresh().await, [changed]);
    assert!(bench.door.lock().known.is_empty(), "the old one is not known any more");
}

#[tokio::test]
async fn after_some_wrong_passwords_the_right_one_has_to_wait_and_others_do_not() {
    let (bench, password) = bench(false);
    let guesses = join_all((0..5).map(|_| bench.admit("plc-01", "guess"))).await;
    assert!(guesses.iter().all(|guess| *guess == WRONG));
    assert_eq!(bench.admit("plc-01", &password).await, WRONG, "not looked at");
    let (other, digest) = crate::identity::generate(&SystemRandom::new()).unwrap();
    set(&bench.file, "plc-02", Role::Device, digest);
    bench.door.refresh().await;
    assert!(bench.admit("plc-02", &other).await.is_ok());
}

#[tokio::test]
async fn a_changed_file_counts_and_a_bad_one_changes_nothing() {
    let (bench, password) = bench(false);
    assert_eq!(bench.door.refresh().await, [], "nothing changed");
    let good = fs::read(&bench.file).unwrap();
    fs::write(&bench.file, "plc-01 device nonsense\n").unwrap();
    assert_eq!(bench.door.refresh().await, []);
    assert!(bench.admit("plc-01", &password).await.is_ok(), "the devices known so far stay");
    fs::write(&bench.file, good).unwrap();
    assert_eq!(bench.door.refresh().await, []);
    change_users(&bench.file, |users| Ok(users.remove("plc-01"))).unwrap();
    let removed = Change { name: "plc-01".into(), forget: true };
    assert_eq!(bench.door.refresh().await, [removed]);
    assert_eq!(bench.admit("plc-01", &password).await, WRONG);
}

#[tokio::test]
async fn a_certificate_says_who_it_is_and_a_name_beside_it_must_be_the_same() {
    let (bench, _) = bench(false);
    let admit = async |shown: Shown, login| bench.door.admit(PEER, &shown, login).await;
    let named = |name: &str| Shown::certificate(Some(name.into()));
    let a = Ok(Principal::Device("a".into()));
    assert_eq!(admit(named("a"), None).await, a);
    assert_eq!(admit(named("a"), login("a", "whatever")).await, a);
    assert_eq!(admit(named("a"), login("plc-01", "x")).await, WRONG);
    let nameless = Err(ConnectReturnCode::NotAuthorized);
    for bad in [Some("a/b"), Some("+"), Some(""), Some("a\0"), None] {
        let shown = Shown::certificate(bad.map(str::to_owned));
        assert_eq!(admit(shown, login("plc-01", "x")).await, nameless, "{bad:?}");
    }
}

#[tokio::test]
async fn nobody_gets_in_without_a_name_unless_that_is_said() {
    let (bench, _) = bench(true);
    let nothing = bench.door.admit(PEER, &Shown::Nothing, None).await;
    assert_eq!(nothing, Ok(Principal::Anonymous));
    assert_eq!(bench.admit("plc-01", "wrong").await, WRONG, "who gives a name has to prove it");
    let without_users = Door::open(&listener(None, false)).unwrap();
    let ignored = without_users.admit(PEER, &Shown::Nothing, login("x", "y")).await;
    assert_eq!(ignored, Ok(Principal::Anonymous));
}

/// The name that was looked at was told by the time only where the password was a chosen one: such
/// a check takes so long that no pause hides it.
#[tokio::test]
async fn where_a_password_is_slow_to_check_every_failure_takes_its_turn() {
    let (bench, _) = bench(false);
    let fits = |user: &str, password: &str| {
        let login = login(user, password).unwrap();
        let door = &bench.door;
        async move { door.fits(&login).await.is_some() }
    };
    assert_eq!(fits("plc-99", "guess").now_or_never(), Some(false), "none is slow");
    set(&bench.file, "hall", Role::Service, chosen("correct horse"));
    bench.door.refresh().await;
    let turn = bench.door.slow.acquire().await.unwrap();
    let names = ["hall", "plc-01", "plc-99", ""];
    let mut failures = names.map(|name| Box::pin(fits(name, "guess")));
    for (name, failure) in names.iter().zip(&mut failures) {
        assert_eq!(failure.now_or_never(), None, "{name:?} waits for its turn");
    }
    drop(turn);
    assert_eq!(join_all(failures).await, [false; 4]);
}

#[tokio::test]
async fn a_flood_of_those_who_prove_nothing_does_not_flood_the_log() {
    let (named, nameless) = (Shown::certificate(Some("a".into())), Shown::certificate(None));
    let kinds = [
        (Shown::Nothing, login("plc-99", "guess")),
        (Shown::Nothing, None),
        (named, login("plc-99", "guess")),
        (nameless, None),
    ];
    for (shown, login) in kinds {
        let (bench, _) = bench(false);
        let log = LogLines::count();
        let knocks = (0..200).map(|_| bench.door.admit(PEER, &shown, login.clone()));
        assert!(join_all(knocks).await.iter().all(Result::is_err));
        assert!((1..20).contains(&log.lines()), "{shown:?}: {} lines", log.lines());
    }
}

//! `fieldgate demo`: both sides at work on this machine, and an account that has to balance.
//!
//! Hub and gateway are processes of their own, as in the field. The gateway reaches the hub through
//! a relay, so that the link can really be cut; the demo itself asks the hub directly, as an
//! application does, and keeps the account from what devices saw acknowledged on one side and from
//! the hub's rows on the other.

mod account;
mod device;
mod hub;
mod part;
mod relay;
mod screen;
mod stage;
mod story;

use std::{process::ExitCode, time::Duration};

use anyhow::Context as _;
use serde_json::{Value, json};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval},
};

pub(super) use self::part::end_with_standard_input;
use self::{
    account::Account,
    screen::{Screen, complain},
    stage::{DEVICES, OBEYS, Stage},
    story::{Step, Story},
};
use crate::config;

/// The hidden subcommand that the demo's own processes are started with.
pub(super) const PART_COMMAND: &str = "demo-part";

/// The shortest demo: faster, and the link would not be back before the command.
const SHORTEST: Duration = Duration::from_secs(5);

/// How often the demo looks at everything, and how many looks make a line of the account.
const LOOK: Duration = Duration::from_millis(200);
const LOOKS_PER_LINE: u32 = 5;

/// How long what is under way at the end may take to arrive.
const SETTLE_PATIENCE: Duration = Duration::from_secs(10);

/// What the columns of the account mean.
const LEGEND: &str =
    "sent: acknowledged to the devices; spooled: held by the gateway; delivered: at the hub\n";

/// The command that the demo sends.
const COMMAND: &str = "set_valve";

/// `--for`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let duration = config::duration(text)?;
    if duration < SHORTEST {
        return Err(format!("the story takes {} s at least", SHORTEST.as_secs()));
    }
    Ok(duration)
}

/// Runs the demo. The exit code says whether the account balances.
pub(super) fn demo(ends_after: Option<Duration>) -> ExitCode {
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the event loop can't be made")
        .and_then(|runtime| runtime.block_on(perform(ends_after)));
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            complain(&format!("\nfieldgate demo: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn perform(ends_after: Option<Duration>) -> anyhow::Result<bool> {
    let mut stop = Stop::new().context("signals can't be heard")?;
    let mut screen = Screen::new();
    let mut stage = Stage::set_up().await.context("setting up")?;
    screen.say(&stage.description())?;
    let ready = tokio::select! {
        () = stop.asked() => Ok(false),
        ready = stage.ready() => ready.map(|()| true),
    };
    let outcome = match ready {
        Ok(true) => Play::new(&mut stage, &mut screen, ends_after).run(&mut stop).await,
        // Ended before it began: nothing is wrong.
        Ok(false) => Ok(true),
        Err(error) => Err(error),
    };
    if !matches!(outcome, Ok(true)) {
        // The logs go with the folder. Whether they can be shown changes nothing any more.
        screen.settle().ok();
        complain(&stage.last_words());
    }
    stage.stop().await;
    outcome
}

/// SIGINT, SIGTERM or SIGHUP: the demo is to stop.
struct Stop([Signal; 3]);

impl Stop {
    fn new() -> std::io::Result<Self> {
        let hangup = signal(SignalKind::hangup())?;
        Ok(Self([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, hangup]))
    }

    async fn asked(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// A command that was sent.
#[derive(Debug)]
struct SentCommand {
    id: String,
    states_shown: usize,
    last: Value,
}

/// The running demo.
struct Play<'a> {
    stage: &'a mut Stage,
    screen: &'a mut Screen,
    account: Account,
    story: Story,
    begun: Instant,
    is_cut: bool,
    /// Readings that the gateway held when the link was healed.
    held_through_cut: Option<u64>,
    command: Option<SentCommand>,
}

impl<'a> Play<'a> {
    fn new(stage: &'a mut Stage, screen: &'a mut Screen, ends_after: Option<Duration>) -> Self {
        Self {
            stage,
            screen,
            account: Account::new(&DEVICES),
            story: Story::new(ends_after),
            begun: Instant::now(),
            is_cut: false,
            held_through_cut: None,
            command: None,
        }
    }

    /// Plays to the end, and says whether the account balances.
    async fn run(mut self, stop: &mut Stop) -> anyhow::Result<bool> {
        let hint = if self.story.is_endless() { "; Ctrl-C ends it" } else { "" };
        self.screen.say(&format!("three devices publish, each 20 readings a second{hint}"))?;
        self.screen.say(LEGEND)?;
        self.stage.devices.iter().for_each(device::Device::begin);
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut looks = 0;
        while !self.story.is_over(self.begun.elapsed()) {
            tokio::select! {
                biased;
                () = stop.asked() => break,
                _ = ticks.tick() => {}
            }
            self.look().await?;
            while let Some(step) = self.story.next(self.begun.elapsed()) {
                self.take(step).await?;
            }
            if looks % LOOKS_PER_LINE == 0 {
                self.show().await?;
            }
            looks = looks.wrapping_add(1);
        }
        self.settle(stop).await?;
        self.conclude()
    }

    async fn take(&mut self, step: Step) -> anyhow::Result<()> {
        match step {
            Step::Cut => {
                self.stage.relay.cut();
                self.is_cut = true;
                self.screen.say("cutting the link between gateway and hub …")?;
            }
            Step::Heal => {
                let status = self.stage.status().await?;
                let (held, kib) = (status.held, status.disk_bytes.div_ceil(1024));
                let line =
                    format!("{held} readings wait in the gateway's spool, {kib} KiB of disk");
                self.screen.say(&line)?;
                self.held_through_cut = Some(held);
                self.heal()?;
            }
            Step::Command => {
                let params = json!({"open": true});
                let id = self.stage.hub.send_command(OBEYS, COMMAND, &params).await?;
                let line =
                    format!("command {COMMAND} {params} for {OBEYS}, by the hub's API: {id}");
                self.screen.say(&line)?;
                self.command = Some(SentCommand { id, states_shown: 0, last: Value::Null });
            }
        }
        Ok(())
    }

    fn heal(&mut self) -> anyhow::Result<()> {
        self.stage.relay.heal();
        self.is_cut = false;
        self.screen.say("the link is whole again; the gateway finds it by itself")
    }

    /// Takes in what happened since the last look.
    async fn look(&mut self) -> anyhow::Result<()> {
        self.stage.check().await?;
        for row in self.stage.hub.new_rows().await? {
            self.account.handle_row(&row.device, row.number);
        }
        for device in &self.stage.devices {
            let counts = device.counts();
            self.account.handle_sent(device.name, counts.published, counts.acknowledged);
        }
        let Some(command) = self.command.as_mut().filter(|command| !command.is_final()) else {
            return Ok(());
        };
        command.last = self.stage.hub.command(&command.id).await?;
        for state in stage::new_states(&command.last, command.states_shown) {
            self.screen.say(&format!("    {state}"))?;
            command.states_shown += 1;
        }
        Ok(())
    }

    async fn show(&mut self) -> anyhow::Result<()> {
        let status = self.stage.status().await?;
        let totals = self.account.totals();
        let line = format!(
            "{:>4} s  {:<10} sent {:>5}  spooled {:>4}  delivered {:>5}  lost {}  duplicated {}",
            self.begun.elapsed().as_secs(),
            status.link,
            totals.acknowledged,
            status.held,
            totals.delivered,
            totals.lost,
            totals.duplicated,
        );
        self.screen.show(line)
    }

    /// Stops the devices and waits, for a while, until everything has arrived.
    async fn settle(&mut self, stop: &mut Stop) -> anyhow::Result<()> {
        if self.is_cut {
            self.heal()?;
        }
        self.stage.devices.iter().for_each(device::Device::rest);
        let end = Instant::now() + SETTLE_PATIENCE;
        let mut ticks = interval(LOOK);
        loop {
            tokio::select! {
                biased;
                () = stop.asked() => break,
                _ = ticks.tick() => {}
            }
            self.look().await?;
            let is_final = self.command.as_ref().is_none_or(SentCommand::is_final);
            if self.account.is_settled() && is_final || Instant::now() >= end {
                break;
            }
        }
        self.show().await
    }

    fn conclude(self) -> anyhow::Result<bool> {
        self.screen.settle()?;
        self.screen.say("\nthe account:")?;
        for line in self.account.lines() {
            self.screen.say(&format!("  {line}"))?;
        }
        let mut faults: Vec<String> = self.account.faults().collect();
        if let Some(command) = &self.command {
            let state = command.last["state"].as_str().unwrap_or("not seen again");
            self.screen.say(&format!("  command    {COMMAND} {state}"))?;
            if state != "succeeded" {
                faults.push(format!("the command {} is {state}", command.id));
            }
        }
        if self.held_through_cut == Some(0) {
            faults.push("the gateway held nothing while the link was cut; was it?".into());
        }
        for fault in &faults {
            self.screen.say(&format!("  WRONG      {fault}"))?;
        }
        let verdict = match faults.is_empty() {
            true => "it balances: lost 0, duplicated 0",
            false => "it does not balance",
        };
        self.screen.say(verdict)?;
        Ok(faults.is_empty())
    }
}

impl SentCommand {
    fn is_final(&self) -> bool {
        self.last["final"] == true
    }
}

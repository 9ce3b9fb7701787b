//! `redial runs …`: imports runs and erases a run in the database; lists and shows runs through the API.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use contracts::{BODY_DEPTH, FieldError, Json, Loc, OrgId, PayloadFormat, RunId, RunStatus, RunUpdate};
use egress::Policy;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use serde_json::value::RawValue;
use store::{
    AcceptPolicy, DatabaseUrl, Deliver, Erasure, RecordedRun, Store, StoreError, erase_run, record_run,
};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::commands::deliveries::Range;
use crate::commands::remote::{Answer, LOOK, Remote, Target, print_table};
use crate::commands::{open_store, require_organization};
use crate::settings::Settings;

/// Import, list, show and erase runs.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Record the runs of a file with one JSON object per line: the body of a run's PUT, plus its id. Safe to
    /// repeat.
    Import {
        /// The file; - for standard input.
        file: PathBuf,
        /// The organization they belong to.
        #[arg(long, value_name = "ID")]
        org: OrgId,
        /// Create the automatic deliveries of runs that have ended, as the API would.
        #[arg(long)]
        deliver: bool,
    },
    /// List an organization's runs, newest first, through the API.
    List {
        #[command(flatten)]
        target: Target,
        /// Only runs with this status, such as succeeded.
        #[arg(long)]
        status: Option<String>,
        #[command(flatten)]
        range: Range,
    },
    /// Show a run and its deliveries, through the API.
    Show {
        #[command(flatten)]
        target: Target,
        run: RunId,
        /// Show them again when they change, until the run and its deliveries have ended; exit with an error
        /// if the newest delivery fails.
        #[arg(long)]
        follow: bool,
    },
    /// Erase the data of a run and its callbacks: output, metadata, failure message and callback URL of the
    /// run, payloads and response bodies of its deliveries. Hashes, sizes, times, codes and the deliveries'
    /// URLs are kept. A waiting delivery is ended first; while a delivery is being sent, nothing is erased.
    Erase {
        /// The run's id.
        run: RunId,
        /// The organization it belongs to.
        #[arg(long, value_name = "ID")]
        org: OrgId,
    },
}

/// Lines per transaction; fewer if they are long, to bound memory.
const CHUNK: usize = 1_000;
const CHUNK_BYTES: usize = 8 << 20;
/// Concurrent transactions on PostgreSQL, where most of the time is spent waiting for it. All lines of a run
/// are in the same lane, which preserves their order. SQLite has one writer.
const LANES: usize = 4;
/// Request id in the logs of the automatic deliveries.
const REQUEST_ID: &str = "runs-import";

/// A parsed line, with its number.
#[derive(Clone)]
struct Line {
    number: usize,
    id: RunId,
    update: RunUpdate,
}

/// Result of a line, by its number: whether the run was new, or why it could not be recorded.
type Outcome = (usize, Result<bool, String>);

#[derive(Default)]
struct Counts {
    created: usize,
    known: usize,
    bad: usize,
}

pub(crate) async fn run(settings: &Settings, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Import { file, org, deliver } => import(settings, file, org, deliver).await,
        Command::Erase { run, org } => erase(settings, org, run).await,
        Command::List { target, status, range } => {
            let filters: Vec<_> = [("status_code", status)].into_iter().chain(range.filters()).collect();
            target.open()?.list("/v1/runs", &filters, range.limit.get(), LISTED).await
        }
        Command::Show { target, run, follow: false } => show(&target.open()?, run).await,
        Command::Show { target, run, follow: true } => follow(&target.open()?, run).await,
    }
}

const LISTED: &[&str] = &["id", "status_code", "created_at", "completed_at", "callback_url"];
const SHOWN: &[&str] = &[
    "id",
    "status_code",
    "created_at",
    "started_at",
    "completed_at",
    "duration_ms",
    "callback_url",
    "failure_code",
    "failure_message",
    "failure_stage_code",
    "metadata",
    "output",
];
const DELIVERY: &[&str] = &[
    "id",
    "status_code",
    "attempt_count",
    "failure_reason_code",
    "is_automatic",
    "created_at",
    "completed_at",
];

async fn show(remote: &Remote, run: RunId) -> anyhow::Result<()> {
    let found = remote.get(&run_path(run)).await?;
    let deliveries = remote.get(&deliveries_path(run)).await?;
    print(remote, &found, &deliveries)
}

/// Shows the run and its deliveries when they change, until all have ended.
async fn follow(remote: &Remote, run: RunId) -> anyhow::Result<()> {
    let mut shown = None;
    loop {
        // In this order, because a run's end and its automatic delivery are recorded together.
        let found = remote.get_patiently(&run_path(run)).await?;
        let deliveries = remote.get_patiently(&deliveries_path(run)).await?;
        let state = (found.value["status_code"].clone(), deliveries.text.clone());
        if shown.as_ref() != Some(&state) {
            print(remote, &found, &deliveries)?;
            shown = Some(state);
        }
        let status = found.value["status_code"].as_str().unwrap_or_default();
        let has_ended = status.parse::<RunStatus>().is_ok_and(RunStatus::is_terminal);
        let deliveries = deliveries.value.as_array().map_or(&[][..], Vec::as_slice);
        if has_ended && deliveries.iter().all(|delivery| !delivery["completed_at"].is_null()) {
            match deliveries.first() {
                Some(newest) if newest["status_code"] != "succeeded" => bail!(
                    "the newest delivery has ended as failed: {}",
                    newest["failure_reason_code"].as_str().unwrap_or("-")
                ),
                _ => return Ok(()),
            }
        }
        sleep(LOOK).await;
    }
}

fn run_path(run: RunId) -> String {
    format!("/v1/runs/{run}")
}

fn deliveries_path(run: RunId) -> String {
    format!("/v1/runs/{run}/callback?fields={}", DELIVERY.join(","))
}

/// Prints the run, then its deliveries.
fn print(remote: &Remote, run: &Answer, deliveries: &Answer) -> anyhow::Result<()> {
    remote.show(run, SHOWN)?;
    if remote.json {
        let deliveries: Vec<&RawValue> = serde_json::from_str(&deliveries.text)?;
        return Ok(deliveries.iter().try_for_each(|delivery| writeln!(io::stdout(), "{delivery}"))?);
    }
    match deliveries.value.as_array() {
        Some(deliveries) if !deliveries.is_empty() => {
            writeln!(io::stdout())?;
            Ok(print_table(deliveries, DELIVERY)?)
        }
        _ => Ok(()),
    }
}

async fn erase(settings: &Settings, org: OrgId, run: RunId) -> anyhow::Result<()> {
    let store = open_store(settings).await?;
    let erasure = store.write(move |tx, now| {
        require_organization(tx, org)?;
        anyhow::Ok(erase_run(tx, now, org, run)?)
    });
    let mut out = io::stdout();
    match erasure.await? {
        Erasure::Erased { deliveries, response_bodies } => {
            writeln!(out, "{}", json!({"payloads": deliveries, "response_bodies": response_bodies}))?;
        }
        Erasure::ErasedBefore(at) => writeln!(out, "{}", json!({"erased_at": at}))?,
        Erasure::RunNotFound => bail!("there is no run {run} in this organization"),
        Erasure::RunNotTerminal(status) => {
            bail!(
                "the run is {status}, and what is reported of it next would bring its data back: erase it when its end \
                 is reported. A PUT of its end without a callback_url sends nothing"
            )
        }
        Erasure::BeingSent(delivery) => bail!(
            "nothing erased: delivery {delivery} is being sent right now. Try again in a minute, with a dispatcher \
             running, which ends what another one has left"
        ),
    }
    let left = "the run is erased, but the database's log still has what was there: erase it again later";
    store.checkpoint().await.context(left)
}

async fn import(settings: &Settings, file: PathBuf, org: OrgId, deliver: bool) -> anyhow::Result<()> {
    let url = settings.database_url()?;
    let lanes = if matches!(url, DatabaseUrl::Sqlite(_)) { 1 } else { LANES };
    let store = Store::open(&url, lanes as u32).await?;
    store.read(move |tx| require_organization(tx, org)).await?;
    let deliver = if deliver { Deliver::Automatically } else { Deliver::Never };
    let recorder = Recorder { store, org, deliver, accept: settings.accept_policy() };
    let max_line = settings.api.max_body;
    let importer = Importer { recorder, lanes, egress: settings.egress_policy(), max_line };
    let progress = progress_bar(&file)?;
    let input: Box<dyn Read> = match file.to_str() {
        Some("-") => Box::new(io::stdin().lock()),
        _ => Box::new(File::open(&file).with_context(|| format!("cannot read {}", file.display()))?),
    };
    let counts = importer.import(BufReader::new(input), &progress).await?;
    progress.finish_and_clear();
    let Counts { created, known, bad } = counts;
    writeln!(io::stdout(), "{created} created, {known} known, {bad} bad")?;
    ensure!(bad == 0, "{bad} line(s) could not be recorded");
    Ok(())
}

struct Importer {
    recorder: Recorder,
    lanes: usize,
    egress: Policy,
    /// Maximum line length in bytes: that of a request body.
    max_line: usize,
}

impl Importer {
    async fn import(&self, mut input: impl BufRead, progress: &ProgressBar) -> anyhow::Result<Counts> {
        let mut counts = Counts::default();
        let (mut chunk, mut chunk_bytes) = (Vec::new(), 0);
        for number in 1.. {
            let (text, read) =
                self.next_line(&mut input).with_context(|| format!("cannot read line {number}"))?;
            progress.inc(read as u64);
            if !text.trim_ascii().is_empty() {
                match self.parse(&text) {
                    Ok((id, update)) => chunk.push(Line { number, id, update }),
                    Err(reason) => report(progress, &mut counts, number, &reason),
                }
            }
            chunk_bytes += text.len();
            if chunk.len() == CHUNK || chunk_bytes >= CHUNK_BYTES || read == 0 {
                self.record(std::mem::take(&mut chunk), progress, &mut counts).await?;
                chunk_bytes = 0;
            }
            if read == 0 {
                break;
            }
        }
        Ok(counts)
    }

    /// Returns the next line and the bytes of input it took; both are empty at the end. Of a line that is too
    /// long, only one byte more than the maximum is kept.
    fn next_line(&self, input: &mut impl BufRead) -> io::Result<(Vec<u8>, usize)> {
        let mut text = Vec::new();
        let mut read = input.by_ref().take(self.max_line as u64 + 1).read_until(b'\n', &mut text)?;
        if text.last() == Some(&b'\n') {
            text.pop();
        } else if text.len() > self.max_line {
            read += input.skip_until(b'\n')?;
        }
        Ok((text, read))
    }

    /// Parses a line by the rules of `PUT /v1/runs/{run_id}`.
    fn parse(&self, line: &[u8]) -> Result<(RunId, RunUpdate), String> {
        if line.len() > self.max_line {
            return Err(format!("longer than api.max_body, {} bytes", self.max_line));
        }
        let json = Json::parse(line, BODY_DEPTH).map_err(|error| error.to_string())?;
        let Json::Object(mut run) = json else { return Err("expected a JSON object".into()) };
        let id = run.shift_remove("id").ok_or("id is missing")?;
        let id = id.as_str().and_then(|id| id.parse().ok()).ok_or("id is not a UUID")?;
        let body = Json::Object(run).to_text(PayloadFormat::Compact);
        let update = api::parse_run(body.as_bytes(), &self.egress).map_err(|errors| sentence(&errors))?;
        Ok((id, update))
    }

    async fn record(
        &self,
        chunk: Vec<Line>,
        progress: &ProgressBar,
        counts: &mut Counts,
    ) -> anyhow::Result<()> {
        let mut lanes = vec![Vec::new(); self.lanes];
        for line in chunk {
            let lane = line.id.0.as_u128() % self.lanes as u128;
            lanes[lane as usize].push(line);
        }
        let mut recording = JoinSet::new();
        for lane in lanes {
            recording.spawn(self.recorder.clone().record(lane));
        }
        let mut outcomes = Vec::new();
        while let Some(recorded) = recording.join_next().await {
            outcomes.extend(recorded??);
        }
        outcomes.sort_by_key(|(number, _)| *number);
        for (number, outcome) in outcomes {
            match outcome {
                Ok(true) => counts.created += 1,
                Ok(false) => counts.known += 1,
                Err(reason) => report(progress, counts, number, &reason),
            }
        }
        Ok(())
    }
}

/// Records lines in the database.
#[derive(Clone)]
struct Recorder {
    store: Store,
    org: OrgId,
    deliver: Deliver,
    accept: AcceptPolicy,
}

impl Recorder {
    /// Records lines in one transaction. If that fails, because of a line or of concurrent writers, records
    /// each line on its own. An outage that lasts longer ends the import.
    async fn record(self, lines: Vec<Line>) -> anyhow::Result<Vec<Outcome>> {
        if let Ok(outcomes) = self.write(lines.clone()).await {
            return Ok(outcomes);
        }
        let mut outcomes = Vec::with_capacity(lines.len());
        for line in lines {
            let number = line.number;
            match self.write(vec![line]).await {
                Ok(outcome) => outcomes.extend(outcome),
                Err(error) if error.may_pass() => {
                    let advice =
                        format!("line {number} could not be recorded; importing all of it again is harmless");
                    return Err(anyhow::Error::new(error).context(advice));
                }
                Err(error) => outcomes.push((number, Err(error.to_string()))),
            }
        }
        Ok(outcomes)
    }

    async fn write(&self, lines: Vec<Line>) -> Result<Vec<Outcome>, StoreError> {
        let (org, deliver, accept) = (self.org, self.deliver, self.accept);
        let recorded = self.store.write(move |tx, now| {
            let record = |line: Line| {
                let run = (org, line.id);
                let recorded = record_run(tx, now, &accept, deliver, run, &line.update, REQUEST_ID)?;
                let outcome = match recorded {
                    RecordedRun::Created(..) => Ok(true),
                    RecordedRun::Updated(..) => Ok(false),
                    RecordedRun::StatusConflict(status) => {
                        Err(format!("the run has ended as {status}, which never changes"))
                    }
                    RecordedRun::Erased => Err("the run's data has been erased".to_owned()),
                };
                Ok((line.number, outcome))
            };
            lines.into_iter().map(record).collect()
        });
        recorded.await
    }
}

fn report(progress: &ProgressBar, counts: &mut Counts, number: usize, reason: &str) {
    counts.bad += 1;
    progress.suspend(|| {
        // A line whose error can't be printed is still counted.
        let _ = writeln!(io::stderr(), "line {number}: {reason}");
    });
}

fn sentence(errors: &[FieldError]) -> String {
    let place = |error: &FieldError| {
        let steps = error.loc.iter().skip(1).map(|step| match step {
            Loc::Key(key) => key.clone(),
            Loc::Index(index) => index.to_string(),
        });
        steps.collect::<Vec<_>>().join(".")
    };
    errors.iter().map(|error| format!("{}: {}", place(error), error.msg)).collect::<Vec<_>>().join("; ")
}

/// Returns a progress bar, which is visible only on a terminal.
fn progress_bar(file: &Path) -> anyhow::Result<ProgressBar> {
    let size = std::fs::metadata(file).ok().filter(std::fs::Metadata::is_file).map(|file| file.len());
    if file.is_dir() {
        bail!("{} is a directory", file.display());
    }
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {elapsed}")?;
    Ok(ProgressBar::new(size.unwrap_or(0)).with_style(style))
}

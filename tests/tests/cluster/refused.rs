//! Whatever does not fit is refused with the numbers, and nobody is killed for it.

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use vineyard_tests::commands::{Answer, Cause, Command, Content};

use crate::again::Room;
use crate::bills::Bills;
use crate::client::Client;
use crate::namespace::Namespace;
use crate::pods::{PYTHON, Pod, ballast};
use crate::table::Table;
use crate::{MIB, cluster, left, reached};

const CAPACITY: u64 = 64 * MIB;
const ALLOWANCE: u64 = 16 * MIB;

const FIRST: Content = Content {
    seed: 51,
    len: 12 * MIB,
};
/// More than the allowance has left, less than the volume.
const SECOND: Content = Content {
    seed: 52,
    len: 24 * MIB,
};
/// The same in Python, which says how each way was refused.
const IN_PYTHON: &str = r#"
import numpy, vineyard

volume, size = vineyard.open(), 24 << 20

def put():
    volume.put(numpy.ones(size, "u1"), name="python")

def create():
    volume.create("python", size)

def open():
    with volume.open("python", "wb") as file:
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))

for way in put, create, open:
    try:
        way()
    except MemoryError as error:
        print(f"{way.__name__} MemoryError: {error}")
"#;
/// More than the volume has.
const LARGE: Content = Content {
    seed: 53,
    len: 80 * MIB,
};

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn what_does_not_fit_is_refused_with_the_numbers_and_nobody_is_killed() -> Result<()> {
    let cluster = cluster()?;
    let mut table = Table::new("refused");
    let namespace = Namespace::new(&cluster, "refused")?;
    namespace.claim("data", CAPACITY)?;
    let pod = Pod {
        writes: Some(ALLOWANCE),
        memory: 192,
        ..Pod::waiting("app", "data")
    };
    namespace.apply(pod.object())?;
    namespace.wait_for("pod/app", "{.status.phase}", "Running")?;
    let node = namespace.node("app")?;
    let mut python = Pod {
        name: "python",
        node: Some(node),
        ..pod
    }
    .object();
    python["spec"]["containers"][0]["image"] = json!(PYTHON);
    namespace.apply(python)?;
    namespace.wait_for("pod/python", "{.status.phase}", "Running")?;
    let bills = Bills::new(&namespace, "data", node)?;
    let mut client = Client::start(&namespace, "app")?;
    client.put("first", FIRST)?;
    client.get("first", FIRST, 1)?;
    let before = bills.expect(&[("app", FIRST.len)])?;
    table.row(
        "a volume of 64 MiB, an allowance of 16: 12 are put",
        Some(&before),
        "",
    );

    // The retainer can only promise what its node has.
    let mut room = Room::of(&namespace, node)?;
    let settled = reached(|| {
        // What others needed is promised a minute longer.
        room = Room::of(&namespace, node).unwrap_or_default();
        (1..20 * MIB).contains(&room.retained)
    });
    ensure!(settled, "{room:?}");
    namespace.apply(ballast("ballast", node, (room.free - 4 * MIB) / MIB))?;
    namespace.wait_for("pod/ballast", "{.status.phase}", "Running")?;
    for (verb, command) in ways(SECOND) {
        let said = refused(&mut client, &command, Cause::Allowance)?;
        ensure!(said.contains(&ALLOWANCE.to_string()), "{said}");
        let bill = bills.expect(&[("app", FIRST.len)])?;
        let step = format!("`{verb}` of 24 MiB on a full node: more than the allowance has left");
        table.row(&step, Some(&bill), said);
    }
    let tried = [
        "exec", "python", "-c", "main", "--", "python3", "-c", IN_PYTHON,
    ];
    let said = namespace.kubectl(&tried)?;
    let bill = bills.expect(&[("app", FIRST.len)])?;
    for (verb, _) in ways(SECOND) {
        let refusal = said.lines().find_map(|line| line.strip_prefix(verb));
        let refusal = refusal.with_context(|| format!("{verb} was not refused: {said}"))?;
        ensure!(refusal.contains(&ALLOWANCE.to_string()), "{said}");
        let step = format!("the same `{verb}` in Python");
        table.row(&step, Some(&bill), refusal.trim());
    }
    namespace.delete(&["pod/ballast"])?;
    for (verb, command) in ways(LARGE) {
        let said = refused(&mut client, &command, Cause::Volume)?;
        let bill = bills.expect(&[("app", FIRST.len)])?;
        let step = format!("`{verb}` of 80 MiB: more than the volume has");
        table.row(&step, Some(&bill), said);
    }

    client.done(&Command::Check { view: 1 })?;
    let killed = "{.status.containerStatuses[*].restartCount}{.status.initContainerStatuses[*].restartCount}";
    for pod in ["pod/app", "pod/python"] {
        ensure!(namespace.field(pod, killed)? == "00", "{pod}");
    }

    let [(_, put), ..] = ways(SECOND);
    let fits = reached(|| matches!(client.call(&put), Ok(Answer::Object { .. })));
    ensure!(fits, "it never fits");
    let bill = bills.now()?;
    let sum = bill.get("app").unwrap_or(&0) + bill.get("retainer").unwrap_or(&0);
    let written = FIRST.len + SECOND.len;
    ensure!((written..written + 4 * MIB).contains(&sum), "{bill:?}");
    table.row(
        "the node has room again: the same `put`",
        Some(&bill),
        "no container was ever restarted",
    );
    drop(client);
    let volume = namespace.volume("data")?;
    namespace.delete(&["pod/app", "pod/python", "pvc/data"])?;
    left::nothing(&cluster, &volume)?;
    table.write()
}

/// The ways in which a client makes an object.
fn ways(content: Content) -> [(&'static str, Command); 3] {
    let name = Some("second".to_owned());
    [
        (
            "put",
            Command::Put {
                name: name.clone(),
                content,
                overwrite: false,
            },
        ),
        ("create", Command::Create { view: 2, content }),
        (
            "open",
            Command::Write {
                name,
                content,
                piece: MIB,
            },
        ),
    ]
}

/// Has the client do what must be refused, and returns what it says.
fn refused(client: &mut Client, command: &Command, cause: Cause) -> Result<String> {
    let answer = client.call(command)?;
    let Answer::Failed(failure) = answer else {
        bail!("{command:?}: {answer:?}");
    };
    ensure!(failure.cause == cause, "{failure:?}");
    let has_numbers = failure.message.chars().any(|c| c.is_ascii_digit());
    ensure!(has_numbers, "no numbers: {failure:?}");
    Ok(failure.message.replace('|', " "))
}

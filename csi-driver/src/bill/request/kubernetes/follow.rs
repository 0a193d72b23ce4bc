//! Sees to it that the retainer's pod requests what is asked for, and knows what kubelet has allocated to it.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::StreamExt;

use super::observe::{Answer, Observation, is_alive};
use super::{Known, Place};
use crate::bill::request::{Standing, State};
use crate::bytes::Bytes;
use crate::volume::PodReference;

/// The pods of the retainer, by what the chart labels them with.
const SELECTOR: &str = "app.kubernetes.io/component=retainer";

/// How long the API server may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// After no answer, and twice as long after each further one.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// After a refusal: somebody may have changed roles or quotas.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);

/// Follows the pod at `place` until nobody asks any more.
pub(super) async fn run(place: Place, wanted: watch::Receiver<Bytes>, known: watch::Sender<Known>) {
    let pods: Api<Pod> = Api::namespaced(place.client.clone(), &place.namespace);
    let field = format!("spec.nodeName={}", place.node);
    let here = watcher::Config::default().labels(SELECTOR).fields(&field);
    let events = watcher(pods.clone(), here).default_backoff();
    let mut events = pin!(events);
    let mut follower = Follower {
        namespace: place.namespace,
        field,
        overhead: place.overhead,
        pods,
        wanted,
        known,
        listing: BTreeMap::new(),
        seen: BTreeMap::new(),
        is_listed: false,
        sure: None,
        trouble: None,
    };
    loop {
        let again = follower.trouble.as_ref().map(|it| it.again);
        let pause = async {
            match again {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(event)) => follower.learn(event),
                Some(Err(error)) => follower.miss(&error),
                None => return,
            },
            asked = follower.wanted.changed() => if asked.is_err() { return },
            () = pause => {}
        }
        follower.settle().await;
    }
}

/// Why the pod's request could not be changed.
struct Trouble {
    /// The pod's uid.
    pod: String,
    /// What was asked for.
    asked: Bytes,
    standing: Standing,
    /// In a row.
    failures: u32,
    again: Instant,
}

impl Trouble {
    /// Whether `wanted` may be taken though what was asked for is refused, because it is less.
    fn is_over(&self, wanted: Bytes) -> bool {
        self.standing.state == State::Refused && wanted < self.asked
    }
}

struct Follower {
    namespace: String,
    /// Selects the pods of this node.
    field: String,
    overhead: Bytes,
    pods: Api<Pod>,
    wanted: watch::Receiver<Bytes>,
    known: watch::Sender<Known>,
    /// By uid, while the watch begins anew.
    listing: BTreeMap<String, Pod>,
    seen: BTreeMap<String, Pod>,
    is_listed: bool,
    /// The pod's uid, and what is surely allocated to it.
    sure: Option<(String, Bytes)>,
    trouble: Option<Trouble>,
}

impl Follower {
    fn learn(&mut self, event: watcher::Event<Pod>) {
        let keyed = |pod: Pod| (pod.uid().unwrap_or_default(), pod);
        match event {
            watcher::Event::Init => self.listing.clear(),
            watcher::Event::InitApply(pod) => self.listing.extend([keyed(pod)]),
            watcher::Event::InitDone => {
                self.seen = std::mem::take(&mut self.listing);
                self.is_listed = true;
            }
            watcher::Event::Apply(pod) => self.seen.extend([keyed(pod)]),
            watcher::Event::Delete(pod) => drop(self.seen.remove(&keyed(pod).0)),
        }
    }

    /// The retainers of this node, as many as there are.
    fn here(&self) -> ListParams {
        ListParams::default().labels(SELECTOR).fields(&self.field)
    }

    /// The watch broke; it is tried again.
    fn miss(&self, error: &watcher::Error) {
        tracing::warn!(%error, "the watch of the retainer's pod broke");
        if !self.is_listed {
            self.tell(Known {
                standing: Standing {
                    state: State::Unheard,
                    message: error.to_string(),
                },
                ..Known::default()
            });
        }
    }

    /// The pod that is billed from now on: the youngest.
    fn retainer(&self) -> Option<Observation> {
        let alive = self.seen.values().filter(|pod| is_alive(pod));
        let youngest = alive.max_by_key(|pod| pod.creation_timestamp().map(|it| it.0));
        youngest.and_then(Observation::of)
    }

    /// Asks when there is something to ask for, and says what is known then.
    async fn settle(&mut self) {
        let wanted = *self.wanted.borrow_and_update();
        let wanted = Bytes(wanted.0.saturating_add(self.overhead.0));
        let Some(mut pod) = self.observe() else {
            if self.is_listed {
                self.tell(absent());
            }
            return;
        };
        let may_ask = match &self.trouble {
            Some(trouble) => trouble.again <= Instant::now() || trouble.is_over(wanted),
            None => true,
        };
        if pod.request != wanted && may_ask {
            self.ask(&pod, wanted).await;
            let Some(now) = self.observe() else {
                return self.tell(absent());
            };
            pod = now;
        }
        let allocated = self.sure.as_ref().map_or(Bytes(0), |(_, bytes)| *bytes);
        let less = |bytes: Bytes| Bytes(bytes.0.saturating_sub(self.overhead.0));
        self.tell(Known {
            heard: Some(less(pod.request)),
            allocated: less(allocated),
            standing: self.standing(&pod, wanted, allocated),
            pod: Some(PodReference {
                namespace: self.namespace.clone(),
                name: pod.name,
                uid: pod.uid,
            }),
        });
    }

    /// Looks at the pod, and remembers what is surely allocated.
    fn observe(&mut self) -> Option<Observation> {
        let pod = self.retainer()?;
        let before = self.sure.take_if(|(uid, _)| *uid == pod.uid);
        let sure = pod.surely_allocated(before.map(|(_, bytes)| bytes));
        self.sure = Some((pod.uid.clone(), sure));
        // What was true of another pod need not be of this one.
        self.trouble = self.trouble.take().filter(|trouble| trouble.pod == pod.uid);
        Some(pod)
    }

    async fn ask(&mut self, pod: &Observation, wanted: Bytes) {
        let resources = json!({"requests": {"memory": wanted.0.to_string()}});
        let container = json!({"name": pod.container, "resources": resources});
        let patch = Patch::Strategic(json!({"spec": {"containers": [container]}}));
        let plain = PatchParams::default();
        let asking = self.pods.patch_resize(&pod.name, &plain, &patch);
        let standing = match timeout(ANSWER, asking).await {
            Ok(Ok(resized)) => {
                tracing::debug!(pod = pod.name, request = wanted.0, "the retainer's request");
                self.trouble = None;
                self.seen.insert(pod.uid.clone(), resized);
                return;
            }
            Ok(Err(error)) => match self.refusal(pod, &error).await {
                Some(standing) => standing,
                None => return,
            },
            Err(_) => Standing {
                state: State::Unheard,
                message: "no answer".into(),
            },
        };
        let before = self.trouble.take().map_or(0, |trouble| trouble.failures);
        let pause = match standing.state {
            State::Refused => REFUSED_PAUSE,
            _ => PAUSE.saturating_mul(1 << before.min(16)).min(LONGEST_PAUSE),
        };
        self.trouble = Some(Trouble {
            pod: pod.uid.clone(),
            asked: wanted,
            standing,
            failures: before.saturating_add(1),
            again: Instant::now() + pause,
        });
    }

    /// What an error means; `None` when it means that the pod is gone.
    async fn refusal(&mut self, pod: &Observation, error: &kube::Error) -> Option<Standing> {
        let code = match error {
            kube::Error::Api(status) => status.code,
            _ => 0,
        };
        let state = match code {
            404 => match self.pods.list(&self.here()).await {
                Ok(now)
                    if now
                        .items
                        .iter()
                        .any(|it| it.uid().as_ref() == Some(&pod.uid)) =>
                {
                    State::Refused
                }
                Ok(_) => {
                    self.seen.remove(&pod.uid);
                    return None;
                }
                Err(_) => State::Unheard,
            },
            400 | 403 | 405 | 422 => State::Refused,
            _ => State::Unheard,
        };
        Some(Standing {
            state,
            message: error.to_string(),
        })
    }

    fn standing(&self, pod: &Observation, wanted: Bytes, allocated: Bytes) -> Standing {
        if let Some(trouble) = &self.trouble {
            return trouble.standing.clone();
        }
        let (state, message) = match &pod.answer {
            _ if pod.request != wanted => (State::Asked, ""),
            Answer::Infeasible(message) => (State::Infeasible, message.as_str()),
            Answer::Deferred(message) => (State::Deferred, message.as_str()),
            Answer::Silence if allocated >= wanted => (State::Allocated, ""),
            Answer::Silence => (State::Asked, ""),
        };
        Standing {
            state,
            message: message.to_owned(),
        }
    }

    fn tell(&self, now: Known) {
        self.known
            .send_if_modified(|known| std::mem::replace(known, now.clone()) != now);
    }
}

fn absent() -> Known {
    Known {
        standing: Standing {
            state: State::Absent,
            message: "no pod of the retainer is on this node".into(),
        },
        ..Known::default()
    }
}

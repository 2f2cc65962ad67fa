//! A receiving side under test, and raw peers that say what they like to it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use maillage_dicom::dimse::command::Command;
use maillage_dicom::dimse::pdu::{AssociateRq, PdvHeader, ProposedContext, UserInformation};
use maillage_dicom::dimse::scp::{
    AssociationEnd, AssociationInfo, AssociationSummary, BoxFuture, CallingPolicy, RejectReason, ScpConfig, ScpEvents,
    ServiceAnswer, ServiceHandler, ServiceRequest, StoreHandler, StoreRequest, serve,
};
use maillage_dicom::dimse::scu::{Association, ScuError, ScuTimeouts};
use maillage_dicom::dimse::{Operation, Status, StoreStatus};
use maillage_dicom::{AeTitle, Uid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Long enough for anything that should happen, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn title(text: &str) -> AeTitle {
    AeTitle::parse(text).expect("a title")
}

/// Keeps what it is given, or refuses it.
pub(crate) struct Recorder {
    pub(crate) stored: Mutex<Vec<(StoreRequest, Bytes)>>,
    pub(crate) refuse: Mutex<Option<StoreStatus>>,
    /// One permit a store that may finish; plenty unless a test takes them.
    pub(crate) gate: Semaphore,
    /// Stores that were begun.
    pub(crate) begun: Mutex<usize>,
    pub(crate) echoes: Mutex<usize>,
    /// Bytes of data sets that it was told of and never given.
    pub(crate) passed_over: Mutex<u64>,
}

impl StoreHandler for Recorder {
    fn passed_over(&self, _: &AssociationInfo, bytes: u64) {
        *lock(&self.passed_over) += bytes;
    }

    fn echo(&self, _: &AssociationInfo) {
        *lock(&self.echoes) += 1;
    }

    fn store(&self, request: StoreRequest, dataset: Bytes) -> BoxFuture<'_, StoreStatus> {
        Box::pin(async move {
            *lock(&self.begun) += 1;
            self.gate.acquire().await.expect("an open gate").forget();
            if let Some(status) = lock(&self.refuse).clone() {
                return status;
            }
            lock(&self.stored).push((request, dataset));
            StoreStatus::SUCCESS
        })
    }
}

/// The SOP class that [`Desk`] serves: Storage Commitment Push Model, of which the pre-scan knows nothing.
pub(crate) const DESK: &str = "1.2.840.10008.1.20.1";

/// Serves one SOP class: says back what it was asked, finds what a C-FIND's data set is long.
pub(crate) struct Desk([Uid; 1]);

impl Desk {
    fn new() -> Self {
        Self([Uid::parse(DESK).expect("a uid")])
    }
}

impl ServiceHandler for Desk {
    fn sop_classes(&self) -> &[Uid] {
        &self.0
    }

    fn perform(&self, request: ServiceRequest, matches: mpsc::Sender<Bytes>) -> BoxFuture<'_, ServiceAnswer> {
        Box::pin(async move {
            match request.operation {
                Operation::Find => {
                    for _ in 0..request.dataset.len() {
                        if matches.send(request.dataset.clone()).await.is_err() {
                            break;
                        }
                    }
                    Status::SUCCESS.into()
                }
                Operation::Create => {
                    let made = request.sop_instance.or_else(|| Uid::parse("1.2.3.4").ok());
                    ServiceAnswer { sop_instance: made, ..Status::SUCCESS.into() }
                }
                Operation::Get => ServiceAnswer::with(request.dataset),
                Operation::Action => Status::from_code(0xC300 + request.action_type.unwrap_or(0), "as asked").into(),
                _ => Status::from_code(0x0211, "unrecognized operation").into(),
            }
        })
    }
}

#[derive(Default)]
pub(crate) struct Ears {
    pub(crate) rejected: Mutex<Vec<RejectReason>>,
    pub(crate) closed: Mutex<Vec<AssociationSummary>>,
    pub(crate) opened: Mutex<usize>,
}

impl ScpEvents for Ears {
    fn rejected(&self, _: SocketAddr, _: Option<&AeTitle>, reason: RejectReason) {
        lock(&self.rejected).push(reason);
    }

    fn association_opened(&self, _: &AssociationInfo) {
        *lock(&self.opened) += 1;
    }

    fn association_closed(&self, _: &AssociationInfo, summary: &AssociationSummary) {
        lock(&self.closed).push(*summary);
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A receiving side called `NODE` that anyone may call, unless `change` says otherwise.
pub(crate) struct Scp {
    pub(crate) addr: SocketAddr,
    pub(crate) handler: Arc<Recorder>,
    pub(crate) ears: Arc<Ears>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: JoinHandle<()>,
}

impl Scp {
    pub(crate) async fn start(change: impl FnOnce(&mut ScpConfig)) -> Self {
        let mut config = ScpConfig { calling: CallingPolicy::Any, ..ScpConfig::new(title("NODE")) };
        change(&mut config);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let handler = Arc::new(Recorder {
            stored: Mutex::default(),
            refuse: Mutex::default(),
            gate: Semaphore::new(1_000_000),
            begun: Mutex::default(),
            echoes: Mutex::default(),
            passed_over: Mutex::default(),
        });
        let (ears, shutdown) = (Arc::<Ears>::default(), CancellationToken::new());
        let served = serve(
            listener,
            config,
            Arc::clone(&handler) as _,
            vec![Arc::new(Desk::new()) as _],
            Arc::clone(&ears) as _,
            shutdown.clone(),
        );
        let task = maillage_host::spawn(served);
        Self { addr, handler, ears, shutdown, task }
    }

    pub(crate) async fn connect(&self, contexts: &[(Uid, Vec<Uid>)]) -> Result<Association, ScuError> {
        Association::connect(self.addr, &title("SENDER"), &title("NODE"), contexts, ScuTimeouts::default()).await
    }

    /// An association for CT images in explicit VR little endian, and for C-ECHO.
    pub(crate) async fn sender(&self) -> Association {
        let contexts = [(Uid::CT_IMAGE_STORAGE, vec![Uid::EXPLICIT_LE]), (Uid::VERIFICATION, vec![Uid::IMPLICIT_LE])];
        self.connect(&contexts).await.expect("an association")
    }

    pub(crate) async fn raw(&self) -> Raw {
        Raw(TcpStream::connect(self.addr).await.expect("a connection"))
    }

    /// A raw connection with an association for CT images, context 1.
    pub(crate) async fn raw_associated(&self) -> Raw {
        let mut raw = self.raw().await;
        raw.send(&request("SENDER", "NODE").encode()).await;
        assert_eq!(raw.receive().await.expect("an answer").0, 2, "accepted");
        raw
    }

    /// Waits until a refusal was reported.
    pub(crate) async fn heard_rejected(&self, reason: RejectReason) {
        self.heard(|ears| lock(&ears.rejected).contains(&reason)).await;
    }

    /// Waits until an association was reported as ended so.
    pub(crate) async fn heard_closed(&self, end: AssociationEnd) {
        self.heard(|ears| lock(&ears.closed).iter().any(|summary| summary.end == end)).await;
    }

    async fn heard(&self, what: impl Fn(&Ears) -> bool) {
        let heard = async {
            while !what(&self.ears) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let outcome = timeout(PATIENCE, heard).await;
        assert!(outcome.is_ok(), "heard {:?} and {:?}", lock(&self.ears.rejected), lock(&self.ears.closed));
    }

    pub(crate) fn stored(&self) -> usize {
        lock(&self.handler.stored).len()
    }
}

impl Drop for Scp {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

pub(crate) fn request(calling: &str, called: &str) -> AssociateRq {
    AssociateRq {
        called: title(called),
        calling: title(calling),
        application_context: Uid::APPLICATION_CONTEXT,
        contexts: vec![ProposedContext {
            id: 1,
            abstract_syntax: Uid::CT_IMAGE_STORAGE,
            transfer_syntaxes: vec![Uid::EXPLICIT_LE, Uid::IMPLICIT_LE],
        }],
        user: UserInformation { max_pdu: 16384, ..UserInformation::default() },
    }
}

/// A P-DATA-TF with one PDV.
pub(crate) fn data(context_id: u8, is_command: bool, is_last: bool, bytes: &[u8]) -> Vec<u8> {
    let header = PdvHeader { context_id, is_command, is_last, len: bytes.len() };
    [header.encode_alone().as_slice(), bytes].concat()
}

/// A C-STORE-RQ as a P-DATA-TF.
pub(crate) fn store_command(sop_instance: &str) -> Vec<u8> {
    let sop_instance = Uid::parse(sop_instance).expect("a uid");
    data(1, true, true, &Command::store(1, Uid::CT_IMAGE_STORAGE, sop_instance).encode())
}

/// A TCP connection without manners.
pub(crate) struct Raw(pub(crate) TcpStream);

impl Raw {
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.expect("sent");
    }

    /// The next PDU: its type and its body; `None` when the connection is closed instead.
    pub(crate) async fn receive(&mut self) -> Option<(u8, Vec<u8>)> {
        timeout(PATIENCE, async {
            let mut header = [0; 6];
            self.0.read_exact(&mut header).await.ok()?;
            let len = u32::from_be_bytes(header[2..].try_into().expect("four bytes"));
            let mut body = vec![0; usize::try_from(len).expect("a length")];
            self.0.read_exact(&mut body).await.ok()?;
            Some((header[0], body))
        })
        .await
        .expect("an answer or an end")
    }

    /// The response to a message.
    pub(crate) async fn response(&mut self) -> Command {
        let (kind, body) = self.receive().await.expect("a response");
        assert_eq!(kind, 4, "data");
        Command::decode(&body[6..]).expect("a command")
    }

    /// Whatever comes until the end, or until the other side resets.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let _ = timeout(PATIENCE, self.0.read_to_end(&mut rest)).await.expect("closed in time");
        rest
    }
}

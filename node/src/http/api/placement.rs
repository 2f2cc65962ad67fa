//! Where copies may lie: the layout that holds, the one that is staged, what it would move, draining, and what is
//! missing.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use maillage_consensus::command::Command;
use maillage_consensus::ids::{Line, Name, SiteId};
use maillage_consensus::mesh::Site;
use maillage_consensus::placement::{Change, Contract, Ground, Holders, Impossible, Layout, Origin, Plan, Share};
use maillage_consensus::{Outcome, View};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::exams::unexpected;
use crate::copies::census::{self, Look};
use crate::copies::choice::Choice;
use crate::http::app::App;
use crate::http::body::JsonBody;
use crate::http::extract::{Idempotency, UrlPath, UrlQuery, field, parse_uid};
use crate::http::problem::Problem;
use crate::http::reading::{FreshQuery, Read};
use crate::http::rfc3339::At;

/// Parts in one answer, unless fewer are asked for.
const LIST_DEFAULT: usize = 100;
/// The most parts in one answer, give or take those of one study.
const LIST_MAX: usize = 1000;

/// A layout over the sites as they are.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Layout")]
pub(super) struct LayoutLine {
    /// 0 before any was applied: then who holds a copy keeps it.
    version: u64,
    /// Copies of each image.
    copies: u8,
    /// Distinct zones that each image needs; 0: two, where there are two.
    zones: u8,
    sites: Vec<GroundLine>,
    contracts: Vec<ContractLine>,
}

/// A site as ground for copies.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "PlacementSite")]
struct GroundLine {
    site: u64,
    name: String,
    zone: String,
    region: String,
    weight: u32,
    /// Whether it takes new copies: it is in session, not draining, not full.
    takes: bool,
    /// Since when its copies go elsewhere.
    draining_since: Option<At>,
    draining_reason: Option<String>,
    /// Since when it has no room for more.
    full_since: Option<At>,
}

/// Whose images may lie where.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Contract")]
struct ContractLine {
    /// `any`, `site:NAME` or `territory:NAME`.
    origin: String,
    /// The only other sites that may hold them; null: all but those below.
    only: Option<Vec<String>>,
    all_but: Vec<String>,
    regions: Vec<String>,
    /// 0: as the layout says.
    copies: u8,
    /// 0: as the layout says.
    zones: u8,
}

fn names(sites: &[Site]) -> BTreeMap<SiteId, Name> {
    sites.iter().map(|site| (site.id, site.description.name.clone())).collect()
}

fn named(names: &BTreeMap<SiteId, Name>, site: SiteId) -> String {
    names.get(&site).map_or_else(|| site.to_string(), ToString::to_string)
}

impl LayoutLine {
    fn new(view: &View<'_>, layout: Layout) -> Result<Self, maillage_consensus::machine::ApplyError> {
        let (sites, standings) = (view.sites()?, view.standings()?);
        let names = names(&sites);
        let (version, zones, contracts) = (layout.version, layout.zones, layout.contracts.clone());
        let copies = match layout.copies {
            0 => view.mesh()?.map_or(1, |mesh| mesh.copies),
            copies => copies,
        };
        let plan = view.plan_of(layout)?;
        let ground = |ground: &Ground| {
            let standing = standings.iter().find(|standing| standing.site == ground.site);
            let draining = standing.and_then(|standing| standing.draining.as_ref());
            GroundLine {
                site: ground.site.0,
                name: ground.name.to_string(),
                zone: ground.zone.to_string(),
                region: ground.region.to_string(),
                weight: ground.weight,
                takes: ground.is_here && ground.weight > 0 && !ground.is_draining && !ground.is_full,
                draining_since: draining.map(|draining| At(draining.at)),
                draining_reason: draining.map(|draining| draining.reason.to_string()),
                full_since: standing.and_then(|standing| standing.full_since).map(At),
            }
        };
        let of = |contract: Contract| {
            let list = |sites: &[SiteId]| sites.iter().map(|site| named(&names, *site)).collect();
            ContractLine {
                origin: origin_text(&contract.origin, &names),
                only: if let Holders::Only(sites) = &contract.holders { Some(list(sites)) } else { None },
                all_but: if let Holders::AllBut(sites) = &contract.holders { list(sites) } else { Vec::new() },
                regions: contract.regions.into_iter().map(Into::into).collect(),
                copies: contract.copies,
                zones: contract.zones,
            }
        };
        let sites = plan.grounds().iter().map(ground).collect();
        Ok(Self { version, copies, zones, sites, contracts: contracts.into_iter().map(of).collect() })
    }
}

fn origin_text(origin: &Origin, names: &BTreeMap<SiteId, Name>) -> String {
    match origin {
        Origin::Any => "any".to_owned(),
        Origin::Territory(name) => format!("territory:{name}"),
        Origin::Site(site) => format!("site:{}", named(names, *site)),
    }
}

fn site_named(sites: &[Site], name: &str) -> Result<SiteId, Problem> {
    let site = sites.iter().find(|site| site.description.name.as_str() == name);
    site.map(|site| site.id).ok_or_else(|| Problem::not_found(format!("no site is called {name:?}")))
}

fn parse_origin(sites: &[Site], text: &str) -> Result<Origin, Problem> {
    match text.split_once(':') {
        None if text == "any" => Ok(Origin::Any),
        Some(("territory", name)) => Ok(Origin::Territory(field("territory", Name::filled(name))?)),
        Some(("site", name)) => Ok(Origin::Site(site_named(sites, name)?)),
        _ => Err(Problem::invalid("origin: any, site:NAME or territory:NAME")),
    }
}

/// The layout that holds, and the one that is staged.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Placement")]
pub(super) struct PlacementLine {
    applied: LayoutLine,
    staged: Option<LayoutLine>,
}

/// `GET /placement`
pub(super) async fn show(
    State(app): State<App>,
    UrlQuery(query): UrlQuery<FreshQuery>,
) -> Result<Read<PlacementLine>, Problem> {
    app.read(query.fresh, |view| {
        let placement = view.placement()?;
        let staged = placement.staged.map(|staged| LayoutLine::new(view, staged)).transpose()?;
        Ok(PlacementLine { applied: LayoutLine::new(view, placement.applied)?, staged })
    })
    .await
}

/// A site's share. What is not said is as the site's configuration says.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ShareBody {
    /// Relative to the others': its capacity in GB, say. 0: no copies.
    weight: Option<u32>,
    #[serde(default)]
    zone: String,
    #[serde(default)]
    region: String,
    #[serde(default)]
    user: String,
}

/// Under which version all that is staged can be applied.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Staged {
    version: u64,
}

async fn stage(app: &App, id: Idempotency, user: &str, change: Change) -> Result<Json<Staged>, Problem> {
    let user = field("user", Name::new(user))?;
    match app.command(id.0, user, Command::StagePlacement(change)).await? {
        Outcome::Staged { version } => Ok(Json(Staged { version })),
        other => Err(unexpected(&other)),
    }
}

fn sites(app: &App) -> Result<Vec<Site>, Problem> {
    app.need_format(2)?;
    Ok(app.node.read(|view| view.sites())?)
}

/// `PUT /placement/sites/{name}`
pub(super) async fn set_share(
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    id: Idempotency,
    JsonBody(body): JsonBody<ShareBody>,
) -> Result<Json<Staged>, Problem> {
    let share = Share {
        site: site_named(&sites(&app)?, &name)?,
        weight: body.weight,
        zone: field("zone", Name::new(body.zone.trim()))?,
        region: field("region", Name::new(body.region.trim()))?,
    };
    stage(&app, id, &body.user, Change::Share(share)).await
}

/// How many copies, in how many zones; what is not said stays.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CopiesBody {
    /// 1 to 7; 0: as many as the mesh was founded with.
    copies: u8,
    #[serde(default)]
    user: String,
}

/// `PUT /placement/copies`
pub(super) async fn set_copies(
    State(app): State<App>,
    id: Idempotency,
    JsonBody(body): JsonBody<CopiesBody>,
) -> Result<Json<Staged>, Problem> {
    app.need_format(2)?;
    stage(&app, id, &body.user, Change::Copies(body.copies)).await
}

/// In how many zones.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ZonesBody {
    /// 1 to 7; 0: two, where there are two.
    zones: u8,
    #[serde(default)]
    user: String,
}

/// `PUT /placement/zones`
pub(super) async fn set_zones(
    State(app): State<App>,
    id: Idempotency,
    JsonBody(body): JsonBody<ZonesBody>,
) -> Result<Json<Staged>, Problem> {
    app.need_format(2)?;
    stage(&app, id, &body.user, Change::Zones(body.zones)).await
}

/// Whose images may lie where.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ContractBody {
    /// The only other sites that may hold them, by name.
    #[serde(default)]
    only: Vec<String>,
    /// … or those that may not.
    #[serde(default)]
    all_but: Vec<String>,
    /// Whether no other site may hold them.
    #[serde(default)]
    nobody: bool,
    /// Only sites in these regions may.
    #[serde(default)]
    regions: Vec<String>,
    /// 0: as the layout says.
    #[serde(default)]
    copies: u8,
    /// 0: as the layout says.
    #[serde(default)]
    zones: u8,
    #[serde(default)]
    user: String,
}

impl ContractBody {
    fn contract(self, origin: Origin, sites: &[Site]) -> Result<Contract, Problem> {
        let of = |names: &[String]| names.iter().map(|name| site_named(sites, name)).collect::<Result<Vec<_>, _>>();
        let holders = match (self.nobody, self.only.is_empty(), self.all_but.is_empty()) {
            (true, true, true) => Holders::Only(Vec::new()),
            (false, true, true) => Holders::Any,
            (false, false, true) => Holders::Only(of(&self.only)?),
            (false, true, false) => Holders::AllBut(of(&self.all_but)?),
            _ => return Err(Problem::invalid("one of only, all_but and nobody")),
        };
        let regions = self.regions.iter().map(|name| field("regions", Name::filled(name.as_str())));
        let regions = regions.collect::<Result<_, _>>()?;
        Ok(Contract { origin, holders, regions, copies: self.copies, zones: self.zones })
    }
}

/// `PUT /placement/contracts/{origin}`
pub(super) async fn set_contract(
    State(app): State<App>,
    UrlPath(origin): UrlPath<String>,
    id: Idempotency,
    JsonBody(body): JsonBody<ContractBody>,
) -> Result<Json<Staged>, Problem> {
    let (sites, user) = (sites(&app)?, body.user.clone());
    let contract = body.contract(parse_origin(&sites, &origin)?, &sites)?;
    stage(&app, id, &user, Change::Contract(contract)).await
}

/// Who does it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ByBody {
    #[serde(default)]
    user: String,
}

/// `POST /placement/contracts/{origin}/end`
pub(super) async fn end_contract(
    State(app): State<App>,
    UrlPath(origin): UrlPath<String>,
    id: Idempotency,
    JsonBody(body): JsonBody<ByBody>,
) -> Result<Json<Staged>, Problem> {
    let origin = parse_origin(&sites(&app)?, &origin)?;
    stage(&app, id, &body.user, Change::EndContract(origin)).await
}

/// What a staged layout would change.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Diff {
    /// By which it is applied.
    version: u64,
    /// What each site would fetch and give up, those that would neither left out.
    sites: Vec<MovesLine>,
    /// Whose images could not lie as they have to: it is only applied with a reason then.
    impossible: Vec<ImpossibleLine>,
}

/// What would move to and from a site.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "PlacementMoves")]
struct MovesLine {
    site: u64,
    name: String,
    parts_gained: u64,
    bytes_gained: u64,
    parts_lost: u64,
    bytes_lost: u64,
}

/// Images that could not lie as they have to.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "PlacementImpossible")]
struct ImpossibleLine {
    /// The site that receives them.
    origin: String,
    copies: usize,
    copies_possible: usize,
    zones: usize,
    zones_possible: usize,
}

impl ImpossibleLine {
    fn new(impossible: Impossible, plan: &Plan) -> Self {
        let Impossible { origin, copies, copies_possible, zones, zones_possible } = impossible;
        let origin = plan.ground(origin).map_or_else(|| origin.to_string(), |ground| ground.name.to_string());
        Self { origin, copies, copies_possible, zones, zones_possible }
    }
}

/// `GET /placement/diff`: after a look at every study.
pub(super) async fn diff(State(app): State<App>, UrlQuery(query): UrlQuery<FreshQuery>) -> Result<Read<Diff>, Problem> {
    let read = app.read(query.fresh, |view| {
        let Some(staged) = view.placement()?.staged else { return Ok(None) };
        Choice::by(staged, &app.node, view).map(Some)
    });
    let read = read.await?.try_map(|choice| choice.ok_or_else(|| Problem::not_found("no layout is staged")))?;
    let moves = census::moves(&app.node, read.value()).await?;
    read.try_map(|choice| {
        let plan = choice.plan();
        let line = |ground: &Ground| {
            let moves = moves.get(&ground.site)?;
            Some(MovesLine {
                site: ground.site.0,
                name: ground.name.to_string(),
                parts_gained: moves.parts_gained,
                bytes_gained: moves.bytes_gained,
                parts_lost: moves.parts_lost,
                bytes_lost: moves.bytes_lost,
            })
        };
        Ok(Diff {
            version: plan.layout().version,
            sites: plan.grounds().iter().filter_map(line).collect(),
            impossible: plan.impossible().into_iter().map(|one| ImpossibleLine::new(one, plan)).collect(),
        })
    })
}

/// Which staged layout is applied, and why although images could not lie as they have to.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ApplyBody {
    version: u64,
    /// Why it holds even if images cannot lie as they have to by it.
    #[serde(default)]
    force: String,
    #[serde(default)]
    user: String,
}

/// What was done.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Placed")]
pub(super) struct Placed {
    done: bool,
}

async fn done(app: &App, id: Idempotency, user: &str, command: Command) -> Result<Json<Placed>, Problem> {
    let user = field("user", Name::new(user))?;
    match app.command(id.0, user, command).await? {
        Outcome::Done => Ok(Json(Placed { done: true })),
        other => Err(unexpected(&other)),
    }
}

/// `POST /placement/apply`
pub(super) async fn apply(
    State(app): State<App>,
    id: Idempotency,
    JsonBody(body): JsonBody<ApplyBody>,
) -> Result<Json<Placed>, Problem> {
    app.need_format(2)?;
    let force = field("force", Line::new(body.force.trim()))?;
    done(&app, id, &body.user, Command::ApplyPlacement { version: body.version, force }).await
}

/// Which staged layout is dropped.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RevertBody {
    version: u64,
    #[serde(default)]
    user: String,
}

/// `POST /placement/revert`
pub(super) async fn revert(
    State(app): State<App>,
    id: Idempotency,
    JsonBody(body): JsonBody<RevertBody>,
) -> Result<Json<Placed>, Problem> {
    app.need_format(2)?;
    done(&app, id, &body.user, Command::RevertPlacement { version: body.version }).await
}

/// Why a site is drained.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DrainBody {
    #[serde(default)]
    reason: String,
    /// Whether it is even if images cannot lie as they have to without it; with a reason.
    #[serde(default)]
    force: bool,
    #[serde(default)]
    user: String,
}

/// `POST /placement/sites/{name}/drain`
pub(super) async fn drain(
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    id: Idempotency,
    JsonBody(body): JsonBody<DrainBody>,
) -> Result<Json<Placed>, Problem> {
    let site = site_named(&sites(&app)?, &name)?;
    let reason = field("reason", Line::new(body.reason.trim()))?;
    done(&app, id, &body.user, Command::Drain { site, reason, force: body.force }).await
}

/// Why a site is drained no more.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UndrainBody {
    #[serde(default)]
    reason: String,
    #[serde(default)]
    user: String,
}

/// `POST /placement/sites/{name}/undrain`
pub(super) async fn undrain(
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    id: Idempotency,
    JsonBody(body): JsonBody<UndrainBody>,
) -> Result<Json<Placed>, Problem> {
    let site = site_named(&sites(&app)?, &name)?;
    let reason = field("reason", Line::new(body.reason.trim()))?;
    done(&app, id, &body.user, Command::Undrain { site, reason }).await
}

/// Copies of all images, as they are beside as they should be. Holders count that are there, or away for less
/// than the grace.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Copies")]
pub(super) struct CopiesLine {
    parts: u64,
    bytes: u64,
    copies: u64,
    copies_bytes: u64,
    /// Parts with fewer copies than wanted.
    under: u64,
    under_bytes: u64,
    /// … with fewer than two.
    under_two: u64,
    /// Copies beyond those wanted, and where they must not be.
    over: u64,
    over_bytes: u64,
    /// Parts whose patient refuses the transfer: they stay where they were received, and count in none of these.
    confined: u64,
}

/// `GET /placement/counts`: after a look at every study.
pub(super) async fn counts(
    State(app): State<App>,
    UrlQuery(query): UrlQuery<FreshQuery>,
) -> Result<Read<CopiesLine>, Problem> {
    let read = app.read(query.fresh, |_| Ok(())).await?;
    let census = census::take(&app.node).await?;
    read.try_map(|()| {
        Ok(CopiesLine {
            parts: census.parts,
            bytes: census.bytes,
            copies: census.copies,
            copies_bytes: census.copies_bytes,
            under: census.under,
            under_bytes: census.under_bytes,
            under_two: census.under_two,
            over: census.over,
            over_bytes: census.over_bytes,
            confined: census.confined,
        })
    })
}

/// Which page of the list.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UnderQuery {
    /// From 1 to 1000, 100 by default.
    limit: Option<usize>,
    /// The `next` of the page before.
    after: Option<String>,
    #[serde(default)]
    fresh: bool,
}

/// Parts of studies beside what is wanted of them.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Parts")]
pub(super) struct PartList {
    parts: Vec<LookLine>,
    /// Where to go on from; null at the end.
    next: Option<String>,
}

/// One part: who holds it, and who should.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "PartPlacement")]
struct LookLine {
    study: String,
    exam: u64,
    /// Who received it.
    origin: String,
    instances: u32,
    bytes: u64,
    /// Copies wanted.
    wanted: usize,
    /// Who says to hold it.
    holders: Vec<String>,
    /// … and is there, and lies where the layout lets it.
    counted: Vec<String>,
    /// Who should.
    should: Vec<String>,
    /// Whether it stays where it was received, because the patient refuses the transfer.
    confined: bool,
}

impl LookLine {
    fn new(look: &Look, names: &BTreeMap<SiteId, Name>) -> Self {
        let list = |sites: &[SiteId]| sites.iter().map(|site| named(names, *site)).collect();
        let held = &look.held;
        let should: Vec<SiteId> = if look.confined { vec![held.origin] } else { look.should.iter().copied().collect() };
        Self {
            study: held.part.study.to_string(),
            exam: held.exam.0,
            origin: named(names, held.origin),
            instances: held.part.instances,
            bytes: held.part.bytes,
            wanted: if look.confined { 1 } else { look.wanted },
            holders: list(&held.holders),
            counted: list(&look.counted),
            should: list(&should),
            confined: look.confined,
        }
    }
}

/// `GET /placement/under`: parts with too few copies, in the order of their studies' UIDs.
pub(super) async fn under(
    State(app): State<App>,
    UrlQuery(query): UrlQuery<UnderQuery>,
) -> Result<Read<PartList>, Problem> {
    let after = query.after.as_deref().map(|uid| parse_uid("after", uid)).transpose()?;
    let limit = query.limit.unwrap_or(LIST_DEFAULT).clamp(1, LIST_MAX);
    let read = app.read(query.fresh, |view| Ok(names(&view.sites()?))).await?;
    let after = after.as_ref().map(maillage_dicom::Uid::as_str);
    let (looks, next) = census::under(&app.node, after, limit).await?;
    read.try_map(|names| Ok(PartList { parts: looks.iter().map(|look| LookLine::new(look, &names)).collect(), next }))
}

/// `GET /placement/studies/{uid}`: who holds each part of a study, and who should.
pub(super) async fn locate(
    State(app): State<App>,
    UrlPath(uid): UrlPath<String>,
    UrlQuery(query): UrlQuery<FreshQuery>,
) -> Result<Read<PartList>, Problem> {
    let uid = parse_uid("study", &uid)?;
    let read = app.read(query.fresh, |view| Ok(names(&view.sites()?))).await?;
    let looks = census::locate(&app.node, uid.as_str())?;
    read.try_map(|names| {
        let looks = looks.ok_or_else(|| Problem::no_such_study("the mesh knows no such study"))?;
        Ok(PartList { parts: looks.iter().map(|look| LookLine::new(look, &names)).collect(), next: None })
    })
}

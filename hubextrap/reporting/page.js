// The page: what the reader chooses, and what follows from it. Numbers come from expecting.js.
"use strict";

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const past = new PastOfRun(data);
  const margins = new StandardErrors(data); // of a sample
  const { constants, steps } = data;
  const newest = steps.length - 1;
  const byId = (id) => document.getElementById(id);
  const chosen = { clock: 0, origin: newest, method: data.start.method, target: data.start.target };
  const LEVELS = {
    good: ["✓", "Looks promising"],
    care: ["⚠", "With care"],
    bad: ["✕", "Keep the last checkpoint"],
    unknown: ["?", "Cannot be judged"],
  };
  const COLOURS = { good: "#009E73", care: "#E69F00", bad: "#D55E00", unknown: "#767676", ink: "#1f2933", line: "#0072B2" };

  // what can be chosen

  const method = () => data.methods[chosen.method];
  const clock = () => data.clocks[chosen.clock];
  const origin = () => clock().origins[chosen.origin];

  // The steps that the slider stops at: all of them where they are few, and every observed one.
  function stops() {
    if (method().fixed) {
      return method().fixed[chosen.clock].filter(([at]) => at === chosen.origin).map(([, step]) => step);
    }
    if (origin().targets) return origin().targets.map(([step]) => step);
    const first = steps[chosen.origin];
    const stride = niceStride((origin().farthest - first) / 400);
    const found = new Set(steps.slice(chosen.origin + 1));
    for (let step = (Math.floor(first / stride) + 1) * stride; step <= origin().farthest; step += stride) found.add(step);
    return [...found].sort((a, b) => a - b);
  }

  function niceStride(least) {
    const unit = 10 ** Math.floor(Math.log10(Math.max(least, 1)));
    return [1, 2, 5, 10].map((times) => times * unit).find((stride) => stride >= least);
  }

  const nearest = (list, step) =>
    list.reduce((best, one) => (Math.abs(one - step) < Math.abs(best - step) ? one : best), list[0]);

  // By steps any step may be typed; else those whose time was written into the page.
  function allowed(step) {
    if (origin().targets || method().fixed) return nearest(stops(), step);
    return Math.min(Math.max(Math.round(step), steps[chosen.origin] + 1), origin().farthest);
  }

  function timeOf(step) {
    if (!origin().targets) return step;
    return origin().targets.find(([one]) => one === step)?.[1];
  }

  // what is said of a target

  const answers = new Map();

  function answerAt(step) {
    const key = `${chosen.clock} ${chosen.origin} ${chosen.method} ${step}`;
    if (!answers.has(key)) answers.set(key, method().fixed ? workedOut(step) : computed(step));
    Object.assign(answers.get(key), margins.of(chosen, step, answers.get(key))); // of a sample
    return answers.get(key);
  }

  function workedOut(step) {
    const row = method().fixed[chosen.clock].find(([at, target]) => at === chosen.origin && target === step);
    const [, , error, found] = row ?? [];
    return { error: error ?? null, found: found ?? null, rehearsals: null, horizon: horizonOf(step), moved: null };
  }

  function computed(step) {
    const view = past.view(chosen.clock, chosen.origin);
    const time = timeOf(step);
    const place = steps.indexOf(step);
    const displacement = past.displacement(method(), view, time);
    return {
      ...past.expected(method(), view, time),
      horizon: horizonOf(step),
      moved: displacement && past.length(view, displacement),
      found: place > chosen.origin ? past.found(method(), view, place, time) : null,
    };
  }

  function horizonOf(step) {
    const { times } = origin();
    return (timeOf(step) - times[chosen.origin]) / (times[chosen.origin] - times[0]);
  }

  // What a verdict would have had to judge by: how often the past predicted as near as trust goes.
  const nearRehearsals = () => data.near[chosen.origin];

  function levelOf({ error, rehearsals, horizon }) {
    if (error === null || nearRehearsals() < constants.too_few) return "unknown";
    if (rehearsals !== null && rehearsals < constants.too_few) return "unknown";
    if (error >= constants.lost) return "bad";
    return error >= constants.promising || horizon > trustedHorizon() * (1 + 1e-9) ? "care" : "good";
  }

  const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

  function reasonFor(answer) {
    const { error, rehearsals, origins, horizon } = answer;
    if (error === null) return "The past of this run holds nothing as far ahead as this, so no error can be expected.";
    const behind = rehearsals === null
      ? ""
      : ` It rests on ${counted(rehearsals, "rehearsal")} from ${counted(origins, "earlier checkpoint")}.`;
    if (nearRehearsals() < constants.too_few) {
      return `Up to there, the run has ${counted(nearRehearsals(), "rehearsal")} within a horizon of ${constants.trusted_horizon}: too few to judge.${behind}`;
    }
    if (levelOf(answer) === "unknown") return `That is too few to judge.${behind}`;
    const beyond = horizon > trustedHorizon() * (1 + 1e-9)
      ? `It lies at horizon ${horizon.toPrecision(3)}, farther than the past trusts this method. `
      : "";
    const scored = error >= constants.lost
      ? `From ${constants.lost} on, every prediction measured so far scored worse than the last checkpoint.`
      : error >= constants.promising
        ? `From ${constants.promising} on, weights come nearer but scores may not.`
        : `Below ${constants.promising}, no prediction measured so far scored worse than the last checkpoint.`;
    return `${beyond}${scored}${behind}`;
  }

  // the answer

  function showAnswer() {
    const answer = answerAt(chosen.target);
    const level = levelOf(answer);
    const [mark, words] = LEVELS[level];
    byId("answer").className = `answer ${level}`;
    byId("mark").textContent = mark;
    byId("level").textContent = words;
    byId("error").textContent = answer.error === null ? "unknown" : answer.error.toFixed(2);
    byId("error").append(StandardErrors.shown(answer.stderr)); // of a sample
    byId("target-said").textContent = `step ${chosen.target}`;
    byId("reason").textContent = reasonFor(answer);
    byId("reason").append(StandardErrors.turns(answer, levelOf)); // of a sample
    const found = byId("found");
    found.hidden = answer.found === null;
    found.textContent = found.hidden
      ? ""
      : `Step ${chosen.target} was observed: the error found is ${answer.found.toFixed(2)}.`;
    if (!found.hidden) found.textContent = found.textContent.replace(/\.$/, `${StandardErrors.shown(answer.foundStderr)}.`); // of a sample
  }

  function showNothing() {
    byId("answer").className = "answer unknown";
    byId("mark").textContent = LEVELS.unknown[0];
    byId("level").textContent = "Nothing to predict";
    byId("error").textContent = "–";
    byId("target-said").textContent = "a later step";
    byId("reason").textContent = `By this clock, nothing is trained after step ${steps[chosen.origin]}. Choose another clock, or an earlier checkpoint to predict from.`;
    byId("found").hidden = byId("mixture").hidden = true;
    for (const id of ["recipe", "commands", "rows", "errors"]) byId(id).replaceChildren();
  }

  // How far it goes, and of what it is made: a mean over the tensors where each has coefficients of its own.
  function showMixture() {
    const known = !method().fixed;
    byId("mixture").hidden = !known;
    if (!known) return;
    const view = past.view(chosen.clock, chosen.origin);
    const rows = past.coefficients(method(), view, timeOf(chosen.target));
    byId("mixture").hidden = !rows;
    if (!rows) return;
    const parts = steps.slice(0, view.count).flatMap((step, k) => {
      const mean = rows.reduce((sum, row) => sum + row[k], 0) / rows.length;
      return mean === 0 ? [] : [`${mean.toFixed(3)} × step ${step}`];
    });
    const way = past.length(view, [Float64Array.from(view.times, (_, k) => (k === 0 ? -1 : k === view.origin ? 1 : 0))]);
    const share = way > 0 ? (answerAt(chosen.target).moved / way).toFixed(2) : "–";
    byId("mixed").textContent = `${parts.join(" + ").replaceAll("+ -", "− ")}${rows.length > 1 ? ", on average over the tensors" : ""}.`;
    byId("moved").textContent = `The prediction lies ${share} times as far from step ${steps[chosen.origin]} as that lies from step ${steps[0]}.`;
  }

  // the recipe and the commands

  const scalar = (value) =>
    typeof value === "string" && !/^[a-z_]+$/.test(value) ? JSON.stringify(value) : String(value);

  function recipe() {
    const { method: name, parameters, damping } = method();
    const lines = [`merge_method: ${scalar(name)}`, "parameters:", `  target_step: ${chosen.target}`];
    if (method().fit) lines.push(`  fit: {sample: ${method().fit}}`); // of a sample
    for (const [key, value] of Object.entries(parameters)) lines.push(`  ${key}: ${scalar(value)}`);
    if (damping !== 1) lines.push(`  damping: ${scalar(damping)}`);
    return `${origin().recipe}${lines.join("\n")}\n`;
  }

  function commands() {
    // said always: when the command is run, the run may have gone on
    const only = `${steps[0] > 0 ? ` --min-step ${steps[0]}` : ""} --max-step ${steps[chosen.origin]}`;
    const by = data.clocks.length > 1 ? ` --clock ${clock().name}` : "";
    const out = `predicted-${chosen.target}`;
    return [
      "# choose the method anew and predict:",
      `hubextrap predict ${data.run} --to ${chosen.target}${only}${by} --out ${out}`,
      "# or run this very recipe, saved as recipe.yaml:",
      `hubextrap merge recipe.yaml --out ${out}`,
      "# then see whether it is better than the last checkpoint:",
      `hubextrap eval ${out} --tasks ${data.tasks || "TASKS"}`,
      "",
    ].join("\n");
  }

  // charts

  function curve() {
    const list = stops();
    const wanted = list.filter((step, at) => at % Math.ceil(list.length / 60) === 0 || steps.includes(step));
    const known = wanted.filter((step) => answers.has(`${chosen.clock} ${chosen.origin} ${chosen.method} ${step}`));
    const missing = wanted.filter((step) => !known.includes(step));
    const until = performance.now() + 25;
    // a large run takes long, and the slider must go on moving meanwhile
    while (missing.length && performance.now() < until) answerAt(missing.shift());
    if (missing.length) later();
    return wanted.filter((step) => !missing.includes(step)).map((step) => ({ step, ...answerAt(step) }));
  }

  let waiting = null;

  function later() {
    waiting ??= setTimeout(() => {
      waiting = null;
      draw();
    });
  }

  function domain() {
    const evaluated = data.scores.flatMap(({ points }) => points.map((point) => point.step));
    return [steps[0], Math.max(origin().farthest, chosen.target, ...evaluated)];
  }

  function frame(figure, options) {
    const width = figure.clientWidth;
    return Plot.plot({
      width,
      marginLeft: 44,
      marginRight: 22,
      marginBottom: 40,
      style: { fontSize: width < 480 ? "11px" : "12px", fontFamily: "inherit", color: COLOURS.ink, background: "none", overflow: "visible" },
      ...options,
      x: { domain: domain(), label: "training step", labelArrow: "right", ticks: Math.min(8, Math.floor(width / 70)), tickFormat: "d" },
    });
  }

  const moment = () => [
    Plot.ruleX([steps[chosen.origin]], { stroke: COLOURS.ink, strokeDasharray: "2,3" }),
    Plot.ruleX([chosen.target], { stroke: COLOURS.line, strokeWidth: 1.5 }),
  ];

  function drawErrors() {
    const figure = byId("errors");
    const points = curve();
    const known = points.filter((point) => point.error !== null);
    const highest = Math.max(1.12, ...known.map((point) => Math.max(point.error, point.found ?? 0) * 1.06));
    const top = Math.min(highest, 1.6);
    const { bands, labels } = bandsUpTo(top);
    const now = answerAt(chosen.target);
    const shown = (value) => Math.min(value, top);
    const chart = frame(figure, {
      height: 312,
      marginTop: 12,
      y: { domain: [0, top], label: null, ticks: 6, tickFormat: ".1f" },
      marks: [
        Plot.rect(bands, { x1: "x1", x2: "x2", y1: "y1", y2: "y2", fill: (band) => COLOURS[band.level], fillOpacity: 0.14 }),
        Plot.text(labels, { ...besideBands(), y: "y", text: "label", fill: "#46535f" }),
        Plot.ruleY([1], { stroke: COLOURS.ink }),
        ...moment(),
        Plot.dot(steps, { x: (step) => step, y: 0, r: 3.5, fill: (step) => (step <= steps[chosen.origin] ? COLOURS.ink : "white"), stroke: COLOURS.ink }),
        Plot.areaY(known.filter((point) => point.stderr !== null), { x: "step", y1: (point) => shown(Math.max(point.error - point.stderr, 0)), y2: (point) => shown(point.error + point.stderr), fill: COLOURS.line, fillOpacity: 0.25 }), // of a sample
        Plot.link(points.filter((point) => point.foundStderr !== null), { x: "step", y1: (point) => shown(Math.max(point.found - point.foundStderr, 0)), y2: (point) => shown(point.found + point.foundStderr), stroke: "#9b2c7e", strokeWidth: 1.5 }), // of a sample
        Plot.line(known, { x: "step", y: (point) => shown(point.error), stroke: COLOURS.line, strokeWidth: 2.2 }),
        Plot.dot(points.filter((point) => point.found !== null), {
          x: "step", y: (point) => shown(point.found), r: 4.5, symbol: "times", stroke: "#9b2c7e", strokeWidth: 2,
        }),
        ...(now.error === null
          ? []
          : [Plot.dot([now], { x: chosen.target, y: shown(now.error), r: 6.5, fill: COLOURS[levelOf(now)], stroke: "white", strokeWidth: 2 })]),
      ],
    });
    figure.replaceChildren(chart);
    figure.setAttribute("aria-label", inWords(known, now));
    figure.setAttribute("aria-label", `${inWords(known, now)}${now.stderr === null ? "" : ` Its standard error is ${StandardErrors.shown(now.stderr).slice(3)}.`}`); // of a sample
    byId("found-key").hidden = !points.some((point) => point.found !== null);
    byId("later-key").hidden = chosen.origin === newest;
  }

  // The past is no prediction; and beyond what the past vouches for, nothing is green.
  function bandsUpTo(top) {
    const { promising, lost } = constants;
    const begin = steps[chosen.origin];
    const end = domain()[1];
    if (nearRehearsals() < constants.too_few) {
      return { bands: [{ level: "unknown", x1: begin, x2: end, y1: 0, y2: top }], labels: [] };
    }
    const trusted = stops().filter((step) => horizonOf(step) <= trustedHorizon() * (1 + 1e-9)).pop() ?? begin;
    const bands = [
      { level: "good", x1: begin, x2: trusted, y1: 0, y2: promising },
      { level: "care", x1: begin, x2: trusted, y1: promising, y2: lost },
      { level: "care", x1: trusted, x2: end, y1: 0, y2: lost },
      { level: "bad", x1: begin, x2: end, y1: lost, y2: top },
    ].filter(({ x1, x2 }) => x2 > x1);
    const labels = [
      { y: promising / 2, label: "promising" },
      { y: (promising + lost) / 2, label: "with care" },
      { y: (lost + 1) / 2, label: "keep the last checkpoint" },
    ];
    return { bands, labels };
  }

  function besideBands() {
    const [left, right] = domain();
    const begin = steps[chosen.origin];
    // before the bands where there is room, else on them
    if ((begin - left) / (right - left) > 0.3) return { x: begin, textAnchor: "end", dx: -6 };
    return { x: begin, textAnchor: "start", dx: 6 };
  }

  const trustedHorizon = () => (chosen.origin < newest ? constants.trusted_horizon : (method().reach ?? 0));

  function inWords(known, now) {
    if (!known.length) return `Expected error: nothing could be rehearsed from step ${steps[chosen.origin]}.`;
    const at = (point) => `${point.error.toFixed(2)} at step ${point.step}`;
    const here = now.error === null ? "unknown" : now.error.toFixed(2);
    return `Expected error by target step: from ${at(known[0])} to ${at(known[known.length - 1])}; ` +
      `${here} at step ${chosen.target}. Below ${constants.promising} is promising, from ${constants.lost} on keep the last checkpoint.`;
  }

  function drawScores() {
    data.scores.forEach(({ title, points }, number) => {
      const figure = byId(`scores-${number}`);
      const observed = points.filter((point) => !point.predicted);
      const predicted = points.filter((point) => point.predicted);
      const margins = points.filter((point) => point.margin > 0);
      const low = Math.min(...points.map((point) => point.value - point.margin));
      const high = Math.max(...points.map((point) => point.value + point.margin));
      const room = (high - low || Math.abs(high) || 1) * 0.08;
      figure.replaceChildren(frame(figure, {
        height: 200,
        marginTop: 10,
        y: { domain: [low - room, high + room], label: null, grid: true, ticks: 5 },
        marks: [
          ...moment(),
          Plot.link(margins, { x: "step", y1: (point) => point.value - point.margin, y2: (point) => point.value + point.margin, stroke: (point) => (point.predicted ? COLOURS.bad : COLOURS.line), strokeOpacity: 0.55, strokeWidth: 3 }),
          Plot.line(observed, { x: "step", y: "value", stroke: COLOURS.line, strokeOpacity: 0.5 }),
          Plot.dot(observed, { x: "step", y: "value", r: 4, fill: COLOURS.line }),
          Plot.dot(predicted, { x: "step", y: "value", r: 7, symbol: "diamond2", stroke: COLOURS.bad, strokeWidth: 2, fill: "none" }),
        ],
      }));
      const said = points.map((point) => `${point.label} at step ${point.step}: ${point.value.toFixed(3)}`);
      figure.setAttribute("aria-label", `Scores, ${title}. ${said.join("; ")}.`);
    });
  }

  // The same as the chart, as text.
  function showTable() {
    const list = stops();
    const every = Math.ceil(list.length / 8);
    const rows = list.filter((step, at) => (at + 1) % every === 0 || steps.includes(step));
    byId("rows").replaceChildren(...rows.map((step) => {
      const answer = answerAt(step);
      const cells = [step, answer.error?.toFixed(2) ?? "–", answer.rehearsals ?? "–", answer.found?.toFixed(2) ?? "–", LEVELS[levelOf(answer)][1]];
      cells[1] += StandardErrors.shown(answer.stderr); // of a sample
      cells[3] += StandardErrors.shown(answer.foundStderr); // of a sample
      const row = document.createElement("tr");
      cells.forEach((text, at) => {
        const cell = document.createElement(at ? "td" : "th");
        if (!at) cell.scope = "row";
        cell.textContent = text;
        row.append(cell);
      });
      return row;
    }));
  }

  function draw() {
    if (!stops().length) return;
    drawErrors();
    drawScores();
  }

  // controls

  function option(value, text) {
    const made = document.createElement("option");
    made.value = value;
    made.textContent = text;
    return made;
  }

  function fillOrigins() {
    const places = steps.map((_, place) => place).filter((place) => clock().origins[place]).reverse();
    byId("origin").replaceChildren(...places.map((place) =>
      option(place, place === newest ? `step ${steps[place]}, the newest: a real prediction` : `step ${steps[place]}: check it against what followed`)));
    byId("origin").value = chosen.origin;
  }

  function fillSlider() {
    const list = stops();
    const slider = byId("slider");
    slider.max = list.length - 1;
    slider.value = list.indexOf(nearest(list, chosen.target));
    slider.setAttribute("aria-valuetext", `step ${chosen.target}`);
    const typed = byId("target");
    typed.min = list[0];
    typed.max = list[list.length - 1];
    typed.value = chosen.target;
    byId("from-step").textContent = list[0];
    byId("to-step").textContent = list[list.length - 1];
    byId("fixed").hidden = !method().fixed;
    byId("does").textContent = method().does;
  }

  function update() {
    const possible = stops();
    byId("what-if").classList.toggle("impossible", !possible.length);
    if (!possible.length) {
      showNothing();
      return;
    }
    chosen.target = allowed(chosen.target);
    fillSlider();
    showAnswer();
    byId("recipe").textContent = recipe();
    byId("commands").textContent = commands();
    showTable();
    showMixture();
    draw();
  }

  function listen() {
    byId("slider").addEventListener("input", (event) => {
      chosen.target = stops()[Number(event.target.value)];
      update();
    });
    byId("target").addEventListener("change", (event) => {
      if (event.target.value !== "" && Number.isFinite(event.target.valueAsNumber)) chosen.target = event.target.valueAsNumber;
      update();
    });
    byId("method").addEventListener("change", (event) => {
      chosen.method = Number(event.target.value);
      update();
    });
    byId("origin").addEventListener("change", (event) => {
      chosen.origin = Number(event.target.value);
      // of an earlier checkpoint, the question is what came of it
      chosen.target = chosen.origin < newest ? steps[newest] : data.start.target;
      update();
    });
    byId("clock")?.addEventListener("change", (event) => {
      chosen.clock = Number(event.target.value);
      if (!origin()) chosen.origin = newest;
      fillOrigins();
      update();
    });
    for (const button of document.querySelectorAll("button[data-copy]")) {
      button.addEventListener("click", () => copy(button));
    }
    new ResizeObserver(later).observe(byId("errors"));
  }

  async function copy(button) {
    const source = byId(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {
      // some browsers keep the clipboard from files: then the text is marked, ready to be copied by hand
      getSelection().selectAllChildren(source);
      if (!document.execCommand("copy")) return;
    }
    const said = byId("copied");
    said.textContent = `${button.dataset.what} copied.`;
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  }

  data.methods.forEach((one, place) => byId("method").append(option(place, one.title)));
  byId("method").value = chosen.method;
  byId("notes").replaceChildren(...data.notes.map((note) => {
    const said = document.createElement("p");
    said.className = "soft";
    said.textContent = note;
    return said;
  }));
  data.clocks.forEach((one, place) => byId("clock")?.append(option(place, one.title)));
  fillOrigins();
  listen();
  update();
})();

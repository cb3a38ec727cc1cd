// A run as the page knows it: displacements, coefficients and expected errors of every method at every origin.
"use strict";

class PastOfRun {
  constructor(data) {
    this.steps = data.steps;
    this.size = data.steps.length;
    this.rounded = data.rounded;
    this.clocks = data.clocks;
    this.constants = data.constants;
    this.gram = Predicting.unpacked(data.gram, data.tensors, this.size);
    this.known = new Map();
  }

  // What was made once is kept: moving the slider asks for it again and again.
  kept(key, make) {
    if (!this.known.has(key)) this.known.set(key, make());
    return this.known.get(key);
  }

  // What was known at an origin: the times of the checkpoints up to it, on a clock.
  view(clock, origin) {
    const times = this.clocks[clock].origins[origin]?.times;
    if (!times) return null;
    // by steps, an earlier checkpoint's rehearsals are the same from every origin
    return { times, origin, count: origin + 1, key: this.clocks[clock].name === "steps" ? "steps" : `${clock}/${origin}` };
  }

  grams(origin) {
    return this.kept(`gram ${origin}`, () =>
      this.gram.map((one) => Predicting.corner(one, this.size, origin + 1)));
  }

  total(origin) {
    return this.kept(`total ${origin}`, () => Predicting.summed(this.grams(origin)));
  }

  // What to fit to: without the rounding to 16 bits, where that is much of the motion.
  fitted(origin) {
    return this.kept(`fitted ${origin}`, () =>
      this.grams(origin).map((one) => Predicting.denoised(one, origin + 1, this.constants)));
  }

  leading(origin) {
    return this.kept(`leading ${origin}`, () =>
      this.grams(origin).map((one) => Predicting.leadingSubspace(one, origin + 1, this.constants.signal_rank)));
  }

  // By which matrices errors are measured: all motion, and where rounding matters the signal's too.
  measures(origin) {
    return this.kept(`measures ${origin}`, () =>
      (this.rounded ? [this.grams(origin), this.leading(origin)] : [this.grams(origin)]).map((each) => ({
        each,
        all: Predicting.summed(each),
      })));
  }

  // displacements: one row, or one for each tensor; null where a method cannot serve

  undamped(method, view, origin, target) {
    return this.kept(`undamped ${method.name} ${view.key} ${origin} ${target}`, () => {
      const rows = this.coefficientsOf(method, view.times.slice(0, origin + 1), origin, target);
      if (!rows || rows.some((row) => row === null)) return null;
      return rows.map((row) => row.map((value, k) => value - (k === origin ? 1 : 0)));
    });
  }

  coefficientsOf(method, times, origin, target) {
    const { constants } = this;
    const ongrid = (row) =>
      row && Predicting.sumToOne(row.map((value) => Predicting.onGrid(value, constants.grid)));
    if (method.method === "low_rank") {
      const rank = method.parameters.rank ?? 1;
      if (origin < 2 || rank > origin) return null;
      const directions = this.kept(`directions ${rank} ${origin}`, () =>
        this.grams(origin).map((gram) => Predicting.leadingDirections(gram, origin + 1, rank, constants)));
      return directions.map((one) => ongrid(Predicting.lowRank(times, target, one)));
    }
    if (method.parameters.base_step === "auto") {
      const choices = Predicting.baseChoices(times, target, constants);
      if (!choices) return null;
      const apart = this.kept(`apart ${origin}`, () =>
        this.fitted(origin).map((gram) => Predicting.distances(gram, origin + 1)));
      return apart.map((one) => {
        const place = Predicting.bestBase(choices, one, origin + 1, constants);
        return ongrid(Predicting.PLAIN.two_point(times, target, { place }));
      });
    }
    return [Predicting.PLAIN[method.method](times, target, method.parameters, constants)];
  }

  displacement(method, view, target) {
    const pairs = Predicting.rehearse(view.times, target, this.constants);
    if (method.method === "calibrated") {
      if (!pairs.length) return null;
      const way = target - view.times[view.origin];
      const directions = this.directions(view)[view.origin];
      return this.calibrations(view).map((stats) => {
        const beta = this.calibration(stats, view, pairs).shares;
        return Float64Array.from(view.times, (_, k) =>
          way * beta.reduce((sum, share, m) => sum + share * directions[m][k], 0));
      });
    }
    const [row, ...others] = this.undamped(method, view, view.origin, target) ?? [];
    if (!row) return null;
    if (method.damping !== "auto") return [row, ...others];
    const stats = this.dampings(method, view);
    const known = pairs.filter(({ j, k }) => stats[0].has(j * this.size + k));
    if (!known.length) return null;
    return stats.map((one) => {
      const share = this.damping(one, known, null);
      return row.map((value) => share * value);
    });
  }

  // One row, or one for each tensor, as a merge would have them.
  coefficients(method, view, target) {
    const found = this.displacement(method, view, target);
    if (!found) return null;
    const weighed = method.method === "calibrated" || method.damping === "auto";
    return found.map((row) => {
      const result = Float64Array.from(row);
      result[view.origin] += 1;
      if (!weighed) return result;
      return Predicting.sumToOne(result.map((value) => Predicting.onGrid(value, this.constants.grid)));
    });
  }

  // How far a prediction lies from the origin's checkpoint.
  length(view, displacement) {
    return Math.sqrt(Math.max(this.squares(displacement, this.measures(view.origin)[0], view.count), 0));
  }

  squares(rows, { each, all }, size) {
    if (rows.length === 1) return Predicting.quadratic(rows[0], all, size);
    return rows.reduce((sum, row, n) => sum + Predicting.quadratic(row, each[n], size), 0);
  }

  // what was rehearsed: squares of errors, one entry per pair; NaN where the method could not serve

  rehearsed(method, view, pairs, measure) {
    if (method.method === "calibrated") return this.rehearsedCalibrated(view, pairs, measure);
    if (method.damping === "auto") return this.rehearsedDamped(method, view, pairs, measure);
    return pairs.map(({ j, k }) =>
      this.kept(`squares ${method.name} ${view.key} ${view.origin} ${measure} ${j} ${k}`, () => {
        const rows = this.undamped(method, view, j, view.times[k]);
        if (!rows) return NaN;
        const errors = rows.map((row) => {
          const error = new Float64Array(view.count);
          error.set(row);
          error[j] += 1;
          error[k] -= 1;
          return error;
        });
        return Math.max(this.squares(errors, this.measures(view.origin)[measure], view.count), 0);
      }));
  }

  directions(view) {
    return this.kept(`slopes ${view.key} ${view.origin}`, () =>
      Predicting.slopes(view.times, this.constants.windows));
  }

  // Inner products of the lines with each other and with each checkpoint, by origin: for one Gram matrix.
  products(view, gram) {
    const { count } = view;
    return this.directions(view).map((lines) => {
      const along = lines.map((line) => Predicting.timesVector(gram, line, count));
      return { along, squares: along.map((row) => lines.map((line) => Predicting.dot(row, line))) };
    });
  }

  calibrations(view) {
    return this.kept(`calibrations ${view.key} ${view.origin}`, () =>
      this.fitted(view.origin).map((gram) => ({ gram, products: this.products(view, gram) })));
  }

  // The shares of the lines by ridge regression over all pairs, and over those of all other origins than each.
  calibration({ gram, products }, view, pairs) {
    const lines = products[0].along.length;
    const zero = () => ({ left: new Float64Array(lines * lines), right: new Float64Array(lines) });
    const own = new Map();
    const all = zero();
    for (const { j, k, weight } of pairs) {
      const { along, squares } = products[j];
      const way = view.times[k] - view.times[j];
      let size = Predicting.distance(gram, view.count, j, k);
      for (let m = 0; m < lines; m++) size += (squares[m][m] * way * way) / lines;
      if (!own.has(j)) own.set(j, zero());
      if (!(size > 0)) continue;
      for (const sums of [all, own.get(j)]) {
        for (let m = 0; m < lines; m++) {
          sums.right[m] += (weight / size) * way * (along[m][k] - along[m][j]);
          for (let i = 0; i < lines; i++) {
            sums.left[m * lines + i] += (weight / size) * way * way * squares[m][i];
          }
        }
      }
    }
    const less = (from, taken) => from.map((value, at) => value - taken[at]);
    const beta = (left, right) => Predicting.ridge(left, right, this.constants);
    return {
      shares: beta(all.left, all.right),
      without: (j) => beta(less(all.left, own.get(j).left), less(all.right, own.get(j).right)),
    };
  }

  rehearsedCalibrated(view, pairs, measure) {
    const origins = [...new Set(pairs.map(({ j }) => j))];
    if (origins.length < 2) return pairs.map(() => NaN);
    const { each } = this.measures(view.origin)[measure];
    const inMeasure = this.kept(`measured ${view.key} ${view.origin} ${measure}`, () =>
      each.map((gram) => this.products(view, gram)));
    const sums = pairs.map(() => 0);
    this.calibrations(view).forEach((stats, n) => {
      const { without } = this.calibration(stats, view, pairs);
      const betas = new Map(origins.map((j) => [j, without(j)]));
      pairs.forEach(({ j, k }, r) => {
        const { along, squares } = inMeasure[n][j];
        const beta = betas.get(j);
        const way = view.times[k] - view.times[j];
        let sum = this.apart(each[n], view.count, j, k);
        for (let m = 0; m < beta.length; m++) {
          sum -= 2 * way * beta[m] * (along[m][k] - along[m][j]);
          for (let i = 0; i < beta.length; i++) sum += way * way * beta[m] * beta[i] * squares[m][i];
        }
        sums[r] += sum;
      });
    });
    return sums.map((sum) => Math.max(sum, 0));
  }

  apart(gram, size, j, k) {
    return gram[j * size + j] + gram[k * size + k] - 2 * gram[j * size + k];
  }

  // For each tensor, by pair: the undamped displacement's square, its product with what happened, and its size.
  dampings(method, view) {
    return this.kept(`dampings ${method.name} ${view.key} ${view.origin}`, () =>
      this.fitted(view.origin).map((gram) => this.alongPairs(method, view, gram)));
  }

  alongPairs(method, view, gram) {
    const { count, times } = view;
    const found = new Map();
    for (let j = 1; j < count - 1; j++) {
      for (let k = j + 1; k < count; k++) {
        const rows = this.undamped(method, view, j, times[k]);
        if (!rows) continue;
        const along = new Float64Array(count);
        for (let i = 0; i <= j; i++) {
          for (let at = 0; at < count; at++) along[at] += rows[0][i] * gram[i * count + at];
        }
        const square = Predicting.dot(along.subarray(0, j + 1), rows[0]);
        const real = Predicting.distance(gram, count, j, k);
        found.set(j * this.size + k, { square, towards: along[k] - along[j], size: real + square });
      }
    }
    return found;
  }

  damping(stats, pairs, without) {
    let above = 0;
    let below = 0;
    for (const { j, k, weight } of pairs) {
      const one = stats.get(j * this.size + k);
      if (j === without || !one || !(one.size > 0)) continue;
      above += (weight / one.size) * one.towards;
      below += (weight / one.size) * one.square;
    }
    return below > 0 ? Math.min(Math.max(above / below, 0), 1) : 0;
  }

  rehearsedDamped(method, view, pairs, measure) {
    const origins = [...new Set(pairs.map(({ j }) => j))];
    if (origins.length < 2) return pairs.map(() => NaN);
    const { each } = this.measures(view.origin)[measure];
    const inMeasure = this.kept(`along ${method.name} ${view.key} ${view.origin} ${measure}`, () =>
      each.map((gram) => this.alongPairs(method, view, gram)));
    const sums = pairs.map(() => 0);
    this.dampings(method, view).forEach((stats, n) => {
      const shares = new Map(origins.map((j) => [j, this.damping(stats, pairs, j)]));
      pairs.forEach(({ j, k }, r) => {
        const one = inMeasure[n].get(j * this.size + k);
        const share = shares.get(j);
        sums[r] += one
          ? share * share * one.square - 2 * share * one.towards + this.apart(each[n], view.count, j, k)
          : NaN;
      });
    });
    return sums.map((sum) => Math.max(sum, 0));
  }

  // statistics/calibration.py: expect_of_last. How many rehearsals, at how many earlier checkpoints, said it.
  expected(method, view, target) {
    const pairs = Predicting.rehearse(view.times, target, this.constants);
    const means = this.measures(view.origin).map(({ all }, measure) => {
      const squares = this.rehearsed(method, view, pairs, measure);
      const known = pairs
        .map((pair, r) => ({ ...pair, error: Math.sqrt(squares[r] / this.apart(all, view.count, pair.j, pair.k)) }))
        .filter(({ error }) => Number.isFinite(error));
      return { known, mean: weightedMean(known, this.constants.grid) };
    });
    const { known } = means[0];
    return {
      error: means[means.length - 1].mean,
      total: means[0].mean,
      rehearsals: known.length,
      origins: new Set(known.map(({ j }) => j)).size,
    };
  }

  // What the error was, where the target was observed.
  found(method, view, place, target) {
    const moved = this.displacement(method, view, target);
    if (!moved) return null;
    const measures = this.measures(this.size - 1);
    const { each, all } = measures[measures.length - 1];
    const errors = moved.map((row) => {
      const error = new Float64Array(this.size);
      error.set(row);
      error[view.origin] += 1;
      error[place] -= 1;
      return error;
    });
    const real = this.apart(all, this.size, view.origin, place);
    return real > 0 ? Math.sqrt(Math.max(this.squares(errors, { each, all }, this.size), 0) / real) : null;
  }
}

function weightedMean(known, grid) {
  const weights = known.reduce((sum, { weight }) => sum + weight, 0);
  if (!(weights > 0)) return null;
  return Predicting.onGrid(known.reduce((sum, { weight, error }) => sum + weight * error, 0) / weights, grid);
}

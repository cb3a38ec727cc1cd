// Standard errors of what comes from a sample of the weights: worked out beforehand at some steps.
"use strict";

class StandardErrors {
  // Args: data: the page's; each method has rows [origin's step, target step, of the expected error, of the error found].
  constructor({ methods, steps, constants }) {
    this.steps = steps;
    this.constants = constants;
    this.known = methods.map(({ stderrs }) => stderrs.map((rows) => {
      const byOrigin = new Map();
      for (const [origin, ...row] of rows) byOrigin.set(origin, [...(byOrigin.get(origin) ?? []), row]);
      return byOrigin;
    }));
  }

  // Those of one answer; null where there is no figure, or none was worked out for such.
  of({ clock, origin, method }, step, { error, found }) {
    const rows = this.known[method][clock].get(this.steps[origin]) ?? [];
    return {
      stderr: error === null ? null : StandardErrors.between(rows.map(([at, one]) => [at, one]), step),
      foundStderr: found === null ? null : StandardErrors.between(rows.map(([at, , one]) => [at, one]), step),
    };
  }

  // On the line between the two nearest steps; at the ends, as there.
  static between(rows, step) {
    const known = rows.filter(([, one]) => one !== null);
    if (!known.length) return null;
    const place = known.findIndex(([at]) => at >= step);
    if (place === -1) return known[known.length - 1][1];
    const [after, above] = known[place];
    if (place === 0 || after === step) return above;
    const [before, below] = known[place - 1];
    return below + ((above - below) * (step - before)) / (after - before);
  }

  static shown(stderr) {
    if (stderr === null) return "";
    const digits = [2, 3].find((count) => stderr === 0 || Number(stderr.toFixed(count)) > 0);
    return digits === undefined ? " ± <0.001" : ` ± ${stderr.toFixed(digits)}`;
  }

  // What to add to the advice where two standard errors up or down would give another.
  static turns(answer, levelOf) {
    if (answer.stderr === null) return "";
    const [less, more] = [-2, 2].map((times) => levelOf({ ...answer, error: Math.max(answer.error + times * answer.stderr, 0) }));
    return less === more ? "" : " The sample could turn this advice: two standard errors up or down give another. --exact reads all weights.";
  }
}

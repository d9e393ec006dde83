module.exports = async ({ items }) => {
  const answer = await fetch(process.env.BENCH_ODP_URL + "/v3/profiles", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(items),
  });
  await answer.text();
  if (!answer.ok) throw new Error(`ODP answered ${answer.status}`);
};

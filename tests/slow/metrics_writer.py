"""Opens the store as stages do, after some seconds, logs 200 metrics into a run of its own and prints the run's id."""

import sys
import time

from mlflow.entities import Metric

from pipeline.base.project import open_project
from pipeline.tracking.store import open_store

if __name__ == "__main__":
    time.sleep(float(sys.argv[1]))
    client, experiment = open_store(open_project(), "mnist")
    run_id = client.create_run(experiment).info.run_id
    for first in range(0, 200, 20):
        rows = [
            Metric(f"m{number % 10}", float(number), 1000 + number, number // 10) for number in range(first, first + 20)
        ]
        client.log_batch(run_id, metrics=rows)
    client.set_terminated(run_id)
    print(f"logged {run_id}")

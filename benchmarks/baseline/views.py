from typing import Any

from django.db import transaction
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from benchmarks.baseline.models import Event


class TransitionSerializer(serializers.Serializer[Any]):
    id = serializers.CharField()
    slug = serializers.CharField()
    event = serializers.ChoiceField(["enter", "exit"])
    enter = serializers.DateTimeField(required=False)
    exit = serializers.DateTimeField(required=False)


class DataSerializer(serializers.Serializer[Any]):
    _id = serializers.CharField()
    segment_events = TransitionSerializer(many=True)


class MessageSerializer(serializers.Serializer[Any]):
    id = serializers.CharField()
    data = DataSerializer()  # type: ignore[assignment] # the name of the field in the message


class Webhook(APIView):
    def post(self, request: Request) -> Response:
        messages = MessageSerializer(data=request.data, many=True)
        messages.is_valid(raise_exception=True)
        with transaction.atomic():
            events = Event.objects.bulk_create(
                Event(
                    audience=transition["slug"],
                    identifier=message["data"]["_id"],
                    is_enter=transition["event"] == "enter",
                    occurred_at=transition[transition["event"]],
                )
                for message in messages.validated_data
                for transition in message["data"]["segment_events"]
            )
        return Response({"received": len(events)})
